"""Selection time of every pruning method beside LiteLVLM's, in one run.

Inputs are made up, so no checkpoint is needed. In every round each method selects once (a short
selection several times) from every size of batch, in an order that favours none. At the vision
tower's own number of patches, the guidance that a method reads, and the tower itself, are measured
in the same rounds.
"""

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.arguments import count
from benchmarks.machine import Machine, command_line
from benchmarks.selection_inputs import GEOMETRIES, Size
from benchmarks.selection_report import REFERENCE, markdown, summarise, write
from benchmarks.selection_rounds import DTYPES, Settings, measure
from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.options import PruningOptions
from vllm_litelvlm.pruning.registry import build_pruner, method_names


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = arguments_parser().parse_args(given)
    console = Console(stderr=True)
    machine, command = Machine.describe(), command_line("benchmarks.selection", given)
    try:
        settings = _settings(options)
        pruners = {method: build_pruner(method, {}) for method in settings.methods}
        blocks = measure(settings, pruners, console)
    except LiteLVLMError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    summary = summarise(settings, blocks)
    write(settings, blocks, summary, machine, command=command)
    print(markdown(settings, summary))
    console.print(f"Written to {settings.output}: results.json, table.md, plot.png")
    return 0


def arguments_parser() -> argparse.ArgumentParser:
    """The command line. Counts are whole numbers from 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    lists = (
        ("--patches", "M", [576, 2880], "patch tokens of an image"),
        ("--batches", "N", [1, 8, 32], "images in a batch"),
    )
    for flag, metavar, default, meaning in lists:
        shown = " ".join(map(str, default))
        add(
            flag,
            metavar=metavar,
            type=count,
            nargs="+",
            default=default,
            help=f"{meaning} ({shown})",
        )
    add(
        "--methods",
        metavar="METHOD",
        choices=[name for name in method_names() if name != "keep-all"],
        nargs="+",
        help=f"besides {REFERENCE} (default: every registered one that drops tokens)",
    )
    add("--rounds", metavar="R", type=count, default=5, help="repetitions (5)")
    add(
        "--threads",
        metavar="T",
        type=count,
        default=torch.get_num_threads(),
        help="of PyTorch (here by default %(default)s); on a shared machine fewer than cores",
    )
    add(
        "--budget-share",
        metavar="SHARE",
        type=_share,
        default=_share("1/9"),
        help="of the patch tokens that stay, such as 1/9 (default) or 0.25",
    )
    add(
        "--dtype",
        choices=list(DTYPES),
        default="bfloat16",
        help="of features and tower (%(default)s)",
    )
    add(
        "--device",
        choices=["cpu", "cuda"],
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(here by default %(default)s)",
    )
    add(
        "--geometry",
        choices=list(GEOMETRIES),
        default="large",
        help="large (default): CLIP-L/336 and LLaVA-1.5-7B's projector; tiny: to try it out",
    )
    add(
        "--max-gib",
        metavar="G",
        type=float,
        default=12.0,
        help="leave out what is estimated to take more memory (%(default)s)",
    )
    add("--seed", metavar="S", type=int, default=0, help="of inputs and weights (0)")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("benchmarks/results/selection"),
        help="for results.json, table.md and plot.png (%(default)s)",
    )
    return parser


def _share(text: str) -> float:
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and up to 1")
    return value


def _settings(options: argparse.Namespace) -> Settings:
    budget = PruningOptions(budget=options.budget_share)
    chosen = options.methods or [name for name in method_names() if name != "keep-all"]
    return Settings(
        methods=tuple(dict.fromkeys([REFERENCE, *chosen])),
        sizes=tuple(
            Size(patches, images, budget.budget_tokens(patches))
            for patches in sorted(set(options.patches))
            for images in sorted(set(options.batches))
        ),
        rounds=options.rounds,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        geometry=GEOMETRIES[options.geometry],
        max_gib=options.max_gib,
        seed=options.seed,
        output=options.output,
    )


if __name__ == "__main__":
    sys.exit(main())
