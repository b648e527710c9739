"""Where the time of one request goes, with every kind of image and text that caches know.

vLLM's real engine runs in this process, with hooks on the loaded model. In every repetition each
budget gets two new images and two new texts and asks all four pairs of them, one request at a
time; no budget gains from the order.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks import breakdown_settings
from benchmarks.breakdown_engine import Engine
from benchmarks.breakdown_report import markdown, summarise, write
from benchmarks.breakdown_rounds import STATES, Case, measure
from benchmarks.breakdown_settings import Settings
from benchmarks.machine import Machine, command_line
from vllm_litelvlm.errors import LiteLVLMError


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = breakdown_settings.parse(arguments_parser(), given)
    console = Console(stderr=True)
    machine, command = Machine.describe(), command_line("benchmarks.breakdown", given)
    try:
        settings = Settings.of(options, console)
        settings.check_budgets(most=settings.visual_tokens)
        with console.status("Starting vLLM ..."):
            engine = Engine(settings.source)
        cases = [Case("litelvlm", budget) for budget in settings.budgets]
        requests = measure(engine, settings, cases, STATES, console)
    except LiteLVLMError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    rows = summarise(settings, requests)
    write(settings, requests, rows, machine, command=command)
    print(markdown(rows))
    console.print(f"Written to {settings.output}: results.json, table.md, plot.png")
    return 0


def arguments_parser() -> argparse.ArgumentParser:
    return breakdown_settings.arguments_parser(
        "breakdown",
        __doc__ or "",
        budgets=(576, 192, 128, 64),
        about="visual tokens kept per image; all of them is keep-all",
    )


if __name__ == "__main__":
    sys.exit(main())
