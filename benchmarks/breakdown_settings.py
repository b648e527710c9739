"""What both commands on vLLM in this process are told: checkpoint, budgets, repetitions."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import checkpoints
from benchmarks.arguments import count
from benchmarks.checkpoints import Source
from vllm_litelvlm.errors import OptionsError

#: Tokens of an answer, so that the longest prompt fits beside it.
MOST_OUTPUT_TOKENS = 1024


@dataclass(frozen=True)
class Settings:
    """What is measured; budgets from large to small. ``visual_tokens``: of an unpruned image."""

    source: Source
    visual_tokens: int
    budgets: tuple[int, ...]
    repetitions: int
    output_tokens: int
    seed: int
    output: Path

    @classmethod
    def of(cls, options: argparse.Namespace, console: Console) -> "Settings":
        """From a parsed command line; a checkpoint is built where none was named."""
        source = checkpoints.find_source(options, console)
        return cls(
            source=source,
            visual_tokens=source.visual_tokens,
            budgets=tuple(sorted(set(options.budgets), reverse=True)),
            repetitions=options.repetitions,
            output_tokens=options.output_tokens,
            seed=options.seed,
            output=options.output,
        )

    def check_budgets(self, most: int) -> None:
        """Raise OptionsError for a budget above ``most`` tokens."""
        if self.budgets[0] > most:
            raise OptionsError(
                f"--budgets {self.budgets[0]} is too many: an image of this model has "
                f"{self.visual_tokens} visual tokens, and at most {most} can be named here."
            )


def arguments_parser(
    command: str, description: str, budgets: Sequence[int], about: str
) -> argparse.ArgumentParser:
    """The command line of ``benchmarks.<command>``. ``about``: what its budgets are."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{command}", description=description.partition("\n")[0]
    )
    add = parser.add_argument
    checkpoints.add_arguments(parser)
    add(
        "--budgets",
        metavar="B",
        type=count,
        nargs="+",
        default=list(budgets),
        help=f"{about} ({' '.join(map(str, budgets))})",
    )
    add("--repetitions", metavar="R", type=count, default=5, help="of every request (5)")
    add(
        "--output-tokens",
        metavar="T",
        type=_answer_length,
        default=8,
        help=f"generated per request, exactly; 1 to {MOST_OUTPUT_TOKENS} (8)",
    )
    add("--seed", metavar="S", type=int, default=0, help="of images and questions (0)")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("benchmarks/results") / command,
        help="for results.json, table.md and plot.png (%(default)s)",
    )
    return parser


def parse(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; ends the program where it contradicts itself."""
    options = parser.parse_args(given)
    checkpoints.check_arguments(parser, options)
    return options


def _answer_length(text: str) -> int:
    value = count(text)
    if value > MOST_OUTPUT_TOKENS:
        raise argparse.ArgumentTypeError(f"{value} is above {MOST_OUTPUT_TOKENS}")
    return value
