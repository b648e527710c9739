"""The plugin beside stock vLLM on a GPU, in one command of at most eight minutes.

What every method costs beside the vision tower is measured first, then servers of stock vLLM and
of the plugin run beside each other on the device and are loaded from processes of their own. All
is written as soon as it is measured, and the tables also where time runs out or something fails.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.arguments import count, positive
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.limit import Limit
from benchmarks.gpu.methods import measure_methods
from benchmarks.gpu.report import write
from benchmarks.gpu.serving import measure_serving
from benchmarks.gpu.settings import Settings
from benchmarks.machine import Machine, command_line
from vllm_litelvlm.errors import LiteLVLMError

_PARTS = {"methods": measure_methods, "serving": measure_serving}


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = arguments_parser()
    options = parser.parse_args(given)
    limit = Limit(options.limit)
    checkpoints.check_arguments(parser, options)
    console = Console(stderr=True)
    machine, command = Machine.describe(), command_line("benchmarks.gpu", given)
    settings = _settings(options, console)
    journal = Journal.begin(settings.output)
    failed = False
    try:
        for name in _PARTS if options.what == "all" else (options.what,):
            failed |= not _measured(name, settings, journal, limit, console)
    finally:
        print(write(settings, journal, machine, command=command))
        console.print(f"Written to {settings.output}: blocks.jsonl, results.json, table.md")
    return 1 if failed else 0


def _measured(
    name: str, settings: Settings, journal: Journal, limit: Limit, console: Console
) -> bool:
    """Measure one part; what goes wrong in it is written down and leaves the others alone."""
    try:
        _PARTS[name](settings, journal, limit, console)
    except (LiteLVLMError, RuntimeError) as error:
        journal.add_trouble(f"Stopped in {name}: {error}")
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return False
    return True


def arguments_parser() -> argparse.ArgumentParser:
    """The command line. Counts are whole numbers from 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        usage="%(prog)s [options] [-- arguments of vllm serve, for all servers]",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add("--what", choices=(*_PARTS, "all"), default="all", help="to measure (all)")
    checkpoints.add_arguments(parser)
    parser.set_defaults(geometry="7b")
    add(
        "--device",
        choices=["cpu", "cuda"],
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(here by default %(default)s)",
    )
    add("--small", action="store_true", help="few requests, to try it out")
    numbers = (
        ("--limit", "SECONDS", 480.0, "from the start, after which no further block begins"),
        ("--start-seconds", "SECONDS", 200.0, "that servers get to start, each way of starting"),
        ("--kv-cache-gb", "GIB", 26.0, "KV cache of every server; three have to fit the device"),
    )
    for flag, metavar, value, meaning in numbers:
        add(flag, metavar=metavar, type=positive, default=value, help=f"{meaning} ({value:g})")
    servers = max(2, min(6, (os.cpu_count() or 1) // 2))
    counts = (
        ("--api-servers", "A", servers, "of the servers that have several"),
        ("--client-processes", "P", max(2, min(5, servers)), "that requests come from"),
        ("--rounds", "R", 2, "repetitions; a single one gives no standard error"),
    )
    for flag, metavar, number, meaning in counts:
        add(flag, metavar=metavar, type=count, default=number, help=f"{meaning} ({number})")
    add("--seed", metavar="S", type=int, default=0, help="of images, texts and weights (0)")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("benchmarks/results/gpu"),
        help="for blocks.jsonl, results.json, table.md, plot.png, the servers' logs (%(default)s)",
    )
    add("extra_arguments", nargs="*", help=argparse.SUPPRESS)
    return parser


def _settings(options: argparse.Namespace, console: Console) -> Settings:
    """What the command line asks for; a checkpoint is built where none was named."""
    source = checkpoints.find_source(options, console)
    return Settings(
        source=source,
        visual_tokens=source.visual_tokens,
        geometry=options.geometry,
        device=options.device,
        api_servers=options.api_servers,
        client_processes=options.client_processes,
        rounds=options.rounds,
        kv_cache_gb=options.kv_cache_gb,
        start_seconds=options.start_seconds,
        seed=options.seed,
        output=options.output,
        small=options.small,
        extra_arguments=tuple(options.extra_arguments),
    )


if __name__ == "__main__":
    # By default it would end this process alone, leave the servers running and write no table.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    sys.exit(main())
