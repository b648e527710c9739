"""The checkpoints that are measured."""

from pathlib import Path

#: Where those with random weights are built.
CHECKPOINTS = Path("benchmarks/results/checkpoints")


def visual_tokens(model: str) -> int:
    """How many tokens LLaVA makes of an image, unpruned; ``model`` is a hub name or folder."""
    from transformers import AutoConfig

    vision = AutoConfig.from_pretrained(model).vision_config
    return int(vision.image_size // vision.patch_size) ** 2
