"""What a training is of, and where it goes."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vllm_litelvlm.demo.checkpoint import Geometry
from vllm_litelvlm.demo.grounding import GroundingGeometry
from vllm_litelvlm.demo.training.schedule import SCHEDULE, Stage, gpu_schedule

#: The trained models' sizes: what two cores train in an evening, in less than 20 MB.
TRAINED = Geometry(
    vision_width=192,
    vision_layers=5,
    vision_heads=6,
    text_width=128,
    text_layers=4,
    projection=128,
    llm_width=192,
    llm_layers=6,
    llm_heads=6,
    llm_kv_heads=6,
    llm_mlp=512,
)


#: The same with a SAM that sees pictures at their own size: 1.5 million parameters more.
TRAINED_MASKS = GroundingGeometry(
    **vars(TRAINED),
    sam_image_size=336,
    sam_patch_size=14,
    sam_width=128,
    sam_layers=5,
    sam_heads=4,
    sam_window=12,
    sam_prompt_width=128,
    sam_decoder_mlp=128,
)


@dataclass(frozen=True)
class Pruning:
    """What is left of an image of which a language model learns to point."""

    method: str
    budget: int


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained, where, and how often it is told and saved (in seconds).

    ``processes`` share every step, each with one thread; ``workers`` make batches ahead, which are
    trained on ``repeats`` times each.
    ``thoroughness`` is the share of the usual validation pictures that are looked at.
    ``tokenizers`` is a folder that has them; one of ``output`` if left out. ``start`` is an
    exported model whose weights and tokenizers a training begins with, instead of random ones.
    ``pruning``: where models learn to point on whole scenes, conversations see that much of them.
    """

    output: Path
    geometry: Geometry = TRAINED
    stages: tuple[Stage, ...] = SCHEDULE
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16
    processes: int = 1
    workers: int = 0
    repeats: int = 1
    report_every: float = 20.0
    validate_every: float = 300.0
    save_every: float = 180.0
    thoroughness: float = 1.0
    tokenizers: Path | None = None
    start: Path | None = None
    pruning: Pruning | None = None

    @property
    def identity(self) -> str:
        """What must not change while a training goes on."""
        pruned = "" if self.pruning is None else f" {self.pruning}"
        return f"{self.geometry} seed={self.seed}{pruned}"

    @property
    def state_file(self) -> Path:
        """Where it stands."""
        return self.output / "state.pt"


def on_gpu(options: TrainingOptions) -> TrainingOptions:
    """The options with what suits a GPU: its schedule, and everything told and saved sooner."""
    return replace(
        options,
        stages=gpu_schedule(options.stages),
        repeats=2,
        report_every=4.0,
        validate_every=40.0,
        save_every=60.0,
    )
