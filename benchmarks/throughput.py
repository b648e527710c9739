"""Throughput and time to first token of the plugin against stock vLLM, on the same checkpoint.

Two real servers run with the same arguments: stock, where the plugin is not even loaded, and
``--plugin litelvlm``. They are measured in turn, never at the same time: in every round the stock
server and the plugin at every budget answer the same number of new requests, and the order
rotates from round to round.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from openai import OpenAIError
from rich.console import Console

from benchmarks.client import MeasurementError
from benchmarks.machine import Machine
from benchmarks.report import markdown_table, summarise, write
from benchmarks.rounds import Settings, measure
from vllm_litelvlm.demo.checkpoint import LARGE, SMALL, build_checkpoint
from vllm_litelvlm.errors import LiteLVLMError

GEOMETRIES = {"large": LARGE, "small": SMALL}
CHECKPOINTS = Path("benchmarks/results/checkpoints")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = arguments_parser()
    options = parser.parse_args(given)
    if options.clip_model and not options.model:
        parser.error("--clip-model belongs to --model; the built checkpoint brings its own CLIP")
    console = Console(stderr=True)
    machine = Machine.describe()
    try:
        settings = _settings(options, console)
        if settings.budgets[0] > settings.visual_tokens:
            parser.error(f"--budgets: this model has {settings.visual_tokens} tokens per image")
        blocks = measure(settings, console)
    except (LiteLVLMError, MeasurementError, OpenAIError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    rows = summarise(blocks)
    model = options.model or f"{options.geometry} geometry, random weights"
    command = shlex.join(["python", "-m", "benchmarks.throughput", *given])
    write(settings.output, settings, blocks, rows, machine, model=model, command=command)
    print(markdown_table(rows))
    console.print(f"Written to {settings.output}: results.json, table.md, plot.png")
    return 0


def arguments_parser() -> argparse.ArgumentParser:
    """The command line. Counts are whole numbers from 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        usage="%(prog)s [options] [-- arguments of vllm serve, for both servers]",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add("--model", help="LLaVA-1.5 checkpoint; by default one with random weights is built")
    add("--clip-model", help="CLIP of the model's vision tower, where the plugin's does not fit")
    add(
        "--geometry",
        choices=sorted(GEOMETRIES),
        default="large",
        help="of the built checkpoint; large (default): 1.1B language model and CLIP-L/336",
    )
    add(
        "--budgets",
        metavar="B",
        type=_count,
        nargs="+",
        default=[576, 192, 128, 64],
        help="visual tokens kept per image (default: 576 192 128 64)",
    )
    counts = (
        ("--requests", "N", 8, "requests per round, server and budget"),
        ("--rounds", "R", 3, "repetitions; a single one gives no standard error"),
        ("--output-tokens", "T", 8, "generated per request, exactly"),
        ("--concurrency", "C", 4, "requests under way at the same time"),
    )
    for flag, metavar, default, meaning in counts:
        add(flag, metavar=metavar, type=_count, default=default, help=f"{meaning} ({default})")
    add("--seed", metavar="S", type=int, default=0, help="of images and questions (0)")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("benchmarks/results/throughput"),
        help="for results.json, table.md, plot.png and both servers' logs (%(default)s)",
    )
    add("extra_arguments", nargs="*", help=argparse.SUPPRESS)
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number from 1")
    return value


def _settings(options: argparse.Namespace, console: Console) -> Settings:
    """Settings for the user's model, or for one that is built here."""
    model, clip_model = options.model, options.clip_model
    if model is None:
        folder = CHECKPOINTS / options.geometry
        with console.status(f"Building the {options.geometry} checkpoint in {folder} ..."):
            built = build_checkpoint(folder, GEOMETRIES[options.geometry], torch.bfloat16)
        console.print(f"Weights in {folder} are random, which does not matter for speed.")
        model, clip_model = str(built.llava), str(built.clip)
    return Settings(
        model=model,
        clip_model=clip_model,
        visual_tokens=_visual_tokens(model),
        budgets=tuple(sorted(set(options.budgets), reverse=True)),
        requests=options.requests,
        rounds=options.rounds,
        output_tokens=options.output_tokens,
        concurrency=options.concurrency,
        seed=options.seed,
        output=options.output,
        extra_arguments=tuple(options.extra_arguments),
    )


def _visual_tokens(model: str) -> int:
    from transformers import AutoConfig

    vision = AutoConfig.from_pretrained(model).vision_config
    return int(vision.image_size // vision.patch_size) ** 2


if __name__ == "__main__":
    sys.exit(main())
