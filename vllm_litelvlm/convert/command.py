"""``litelvlm convert``: the arguments, the conversion that they name, and what it says."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

HELP = "rewrite a checkpoint of another layout, GLaMM's, into the one that is served"
VISION_TOWER = "openai/clip-vit-large-patch14-336"
#: "keep" leaves every tensor what it is.
DTYPES = ("keep", "float16", "bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put the command's arguments on a parser, such as a subcommand's."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    glamm = kinds.add_parser(
        "glamm",
        help="GLaMM: a LLaVA, its [SEG] projection and a SAM",
        description="Write a published GLaMM as a LLaVA of llava-hf's layout with the [SEG] "
        "projection, and in its folder sam/ the SAM of transformers' layout.",
    )
    glamm.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder of the checkpoint: config.json, weights and tokenizer.model",
    )
    glamm.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write")
    glamm.add_argument(
        "--vision-tower",
        default=VISION_TOWER,
        metavar="CLIP",
        help="hub name or folder of the CLIP that GLaMM sees with (%(default)s)",
    )
    glamm.add_argument(
        "--dtype",
        choices=DTYPES,
        default="keep",
        help="of every tensor written; by default what each one is",
    )
    glamm.add_argument(
        "--overwrite", action="store_true", help="replace OUTPUT where it is not empty"
    )


def run(chosen: argparse.Namespace) -> None:
    """Do what the arguments say. Raises LiteLVLMError for what cannot be done."""
    import torch
    from rich.console import Console

    from vllm_litelvlm.convert.glamm import convert_glamm

    dtype = None if chosen.dtype == "keep" else getattr(torch, chosen.dtype)
    console = Console()
    with _progress(console) as show:
        read = convert_glamm(
            chosen.source, chosen.output, chosen.vision_tower, dtype, chosen.overwrite, show
        )
    console.print(f"Written to {chosen.output}:", *read.sentences(), sep="\n  ", markup=False)


@contextmanager
def _progress(console: "Console") -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes, and what moves it: a call with the bytes done and the bytes in all."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
