"""The checkpoints that are measured: the user's, or one with random weights that is built."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

from benchmarks.workload import IMAGE_SIZE
from vllm_litelvlm.demo.checkpoint import (
    LARGE,
    LLAVA_7B,
    SMALL,
    TINY,
    build_checkpoint,
)
from vllm_litelvlm.demo.llava_next import build_llava_next
from vllm_litelvlm.demo.qwen import build_qwen
from vllm_litelvlm.demo.qwen_config import LARGE_QWEN, SMALL_QWEN, TINY_QWEN, Kind

#: Where those with random weights are built.
CHECKPOINTS = Path("benchmarks/results/checkpoints")
GEOMETRIES = {"7b": LLAVA_7B, "large": LARGE, "small": SMALL, "tiny": TINY}
QWEN_GEOMETRIES = {"large": LARGE_QWEN, "small": SMALL_QWEN, "tiny": TINY_QWEN}
#: Families of which a checkpoint can be built, as their configurations call them.
FAMILIES = ("llava", "llava_next", *get_args(Kind))
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
    image_size: tuple[int, int] = IMAGE_SIZE

    @property
    def visual_tokens(self) -> int:
        """How many tokens the model makes of an image, unpruned."""
        from transformers import AutoProcessor

        width, height = self.image_size
        processor = AutoProcessor.from_pretrained(self.model)
        counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        return int(counted.num_image_tokens[0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a checkpoint."""
    add = parser.add_argument
    add("--model", help="a checkpoint; by default one with random weights is built")
    add("--clip-model", help="CLIP of the model's vision tower, where the plugin's does not fit")
    add(
        "--family",
        choices=FAMILIES,
        default="llava",
        help="of the built checkpoint (default: llava, which is LLaVA-1.5)",
    )
    add(
        "--image-size",
        metavar=("WIDTH", "HEIGHT"),
        type=int,
        nargs=2,
        default=IMAGE_SIZE,
        help="of every image in pixels, which decides how many tokens it has where a model sees "
        "images of any size (default: 640 480)",
    )
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
    if options.family in get_args(Kind) and options.geometry not in QWEN_GEOMETRIES:
        parser.error(f"--geometry {options.geometry} is for LLaVAs")


def find_source(options: argparse.Namespace, console: Console) -> Source:
    """The user's checkpoint, or one that is built here."""
    size = (options.image_size[0], options.image_size[1])
    if options.model is not None:
        return Source(options.model, options.clip_model, options.model, image_size=size)
    name = f"{options.geometry} geometry, random weights"
    if options.family in get_args(Kind):
        folder = CHECKPOINTS / f"{options.family}-{options.geometry}"
        with console.status(f"Building the {options.geometry} checkpoint in {CHECKPOINTS} ..."):
            sizes = QWEN_GEOMETRIES[options.geometry]
            model = build_qwen(folder, options.family, sizes, torch.bfloat16)
        return Source(str(model), None, f"{options.family}, {name}", image_size=size)
    written = options.geometry not in _UNWRITTEN
    with console.status(f"Building the {options.geometry} checkpoint in {CHECKPOINTS} ..."):
        build, folder = build_checkpoint, CHECKPOINTS / options.geometry
        if options.family == "llava_next":
            build, folder = build_llava_next, CHECKPOINTS / f"llava_next-{options.geometry}"
            name = f"llava_next, {name}"
        geometry = GEOMETRIES[options.geometry]
        built = build(folder, geometry, torch.bfloat16, weights=written)
    load_format = "auto" if written else "dummy"
    return Source(str(built.llava), str(built.clip), name, load_format, size)
