"""The checkpoints that are measured: the user's, or one with random weights that is built."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from vllm_litelvlm.demo.checkpoint import (
    LARGE,
    LLAVA_7B,
    SMALL,
    TINY,
    build_checkpoint,
)

#: Where those with random weights are built.
CHECKPOINTS = Path("benchmarks/results/checkpoints")
GEOMETRIES = {"7b": LLAVA_7B, "large": LARGE, "small": SMALL, "tiny": TINY}
#: Those whose weights vLLM makes up when it loads them, as they would fill a disk.
_UNWRITTEN = ("7b",)


@dataclass(frozen=True)
class Source:
    """A checkpoint to measure: hub names or folders, and how to call it in a result.

    ``load_format`` is vLLM's.
    """

    model: str
    clip_model: str | None
    name: str
    load_format: str = "auto"

    @property
    def visual_tokens(self) -> int:
        """How many tokens the model makes of an image, unpruned."""
        from transformers import AutoConfig

        vision = AutoConfig.from_pretrained(self.model).vision_config
        return int(vision.image_size // vision.patch_size) ** 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a checkpoint."""
    add = parser.add_argument
    add("--model", help="LLaVA-1.5 checkpoint; by default one with random weights is built")
    add("--clip-model", help="CLIP of the model's vision tower, where the plugin's does not fit")
    add(
        "--geometry",
        choices=list(GEOMETRIES),
        default="large",
        help="of the built checkpoint; 7b: LLaVA-1.5-7B; large (default): 1.1B language model and "
        "CLIP-L/336; others: to try it out",
    )


def check_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program where they contradict each other."""
    if options.clip_model and not options.model:
        parser.error("--clip-model belongs to --model; the built checkpoint brings its own CLIP")


def find_source(options: argparse.Namespace, console: Console) -> Source:
    """The user's checkpoint, or one that is built here."""
    if options.model is not None:
        return Source(options.model, options.clip_model, options.model)
    written = options.geometry not in _UNWRITTEN
    with console.status(f"Building the {options.geometry} checkpoint in {CHECKPOINTS} ..."):
        built = build_checkpoint(
            CHECKPOINTS / options.geometry,
            GEOMETRIES[options.geometry],
            torch.bfloat16,
            weights=written,
        )
    name = f"{options.geometry} geometry, random weights"
    load_format = "auto" if written else "dummy"
    return Source(str(built.llava), str(built.clip), name, load_format)
