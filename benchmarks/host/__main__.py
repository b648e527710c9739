"""What the host spends on a request: processor time of a server's processes, and launches.

On a fast device a pruned request takes a few milliseconds, so the host decides. Real servers run
beside each other, stock vLLM and the plugin, and are loaded in turn from processes of their own.
What every method launches on a GPU is counted without one.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import checkpoints
from benchmarks.arguments import count, positive
from benchmarks.beside import Beside
from benchmarks.conditions import METHODS
from benchmarks.host import launches, report
from benchmarks.host.rounds import measure
from benchmarks.host.settings import Front, Settings
from benchmarks.machine import Machine, command_line
from vllm_litelvlm.errors import LiteLVLMError

#: A part's table for the reader, and what goes into ``results.json``.
Found = tuple[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = arguments_parser()
    options = parser.parse_args(given)
    checkpoints.check_arguments(parser, options)
    console = Console(stderr=True)
    machine, command = Machine.describe(), command_line("benchmarks.host", given)
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Found] = {}
    try:
        for name in _PARTS if options.what == "all" else (options.what,):
            found[name] = _PARTS[name](options, machine, console)
    except (LiteLVLMError, launches.HostWaitsError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    tables = [table for table, _ in found.values()]
    result = {name: written for name, (_, written) in found.items()}
    report.write(options.output, tables, result, machine, command=command)
    print("\n\n".join(tables))
    drawn = ", plot.png" if "processor" in found else ""
    console.print(f"Written to {options.output}: results.json, table.md{drawn}")
    return 0


def _processor(options: argparse.Namespace, machine: Machine, console: Console) -> Found:
    """Processor time of servers under load; draws ``plot.png``."""
    settings = _settings(options, console)
    settings.check_budget()
    return report.processor_part(settings, measure(settings, console), machine)


def _launches(options: argparse.Namespace, machine: Machine, console: Console) -> Found:
    """What every method starts on a GPU."""
    with console.status("Counting launches ..."):
        counts = launches.measure()
    title = "**Launches of guidance + selection on a GPU, for a batch**"
    return f"{title}\n\n{launches.markdown(counts)}", [asdict(count) for count in counts]


#: What can be measured, by the name that ``--what`` has for it.
_PARTS: dict[str, Callable[[argparse.Namespace, Machine, Console], Found]] = {
    "launches": _launches,
    "processor": _processor,
}


def arguments_parser() -> argparse.ArgumentParser:
    """The command line. Counts are whole numbers from 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host",
        usage="%(prog)s [options] [-- arguments of vllm serve, for all servers]",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add(
        "--what",
        choices=(*_PARTS, "all"),
        default="all",
        help="launches: what each method starts on a GPU; processor: time of servers under load; "
        "all (default)",
    )
    checkpoints.add_arguments(parser)
    parser.set_defaults(geometry="tiny")
    add(
        "--methods",
        metavar="METHOD",
        choices=METHODS,
        nargs="+",
        default=["litelvlm"],
        help="pruning methods under load (litelvlm)",
    )
    add(
        "--beside",
        metavar="PATH",
        type=Beside.at,
        help="another checkout of this project: a server with its package is compared too",
    )
    _add_loads(parser)
    add("--seed", metavar="S", type=int, default=0, help="of images and texts (0)")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("benchmarks/results/host"),
        help="for results.json, table.md, plot.png and the servers' logs (%(default)s)",
    )
    add(
        "--most-other-load",
        metavar="CORES",
        type=float,
        help="measure a block again, up to three times, while other processes keep more cores busy",
    )
    add(
        "--kv-cache-gb",
        metavar="GIB",
        type=positive,
        default=1.0,
        help="KV cache of every server; whole ones on a CPU (%(default)g)",
    )
    add("extra_arguments", nargs="*", help=argparse.SUPPRESS)
    return parser


def _add_loads(parser: argparse.ArgumentParser) -> None:
    """Which servers are asked what, and how fast."""
    add = parser.add_argument
    lists: tuple[tuple[str, str, list[int], str], ...] = (
        ("--api-servers", "A", [1, 2], "API servers of a server; each number is measured"),
        ("--renderer-workers", "W", [], "besides, vLLM's --renderer-num-workers, on 1 API server"),
        ("--texts", "T", [1, 16], "texts asked about each image; 1: every image new"),
    )
    for flag, metavar, default, meaning in lists:
        shown = " ".join(map(str, default)) or "none"
        told = f"{meaning} ({shown})"
        add(flag, metavar=metavar, type=count, nargs="+", default=default, help=told)
    counts = (
        ("--budget", "B", 64, "visual tokens kept per image"),
        ("--requests", "N", 64, "requests of a block, rounded up to all texts about an image"),
        ("--rounds", "R", 6, "repetitions; a single one gives no standard error"),
        ("--clients", "C", 4, "requests at a time"),
        ("--client-processes", "P", 2, "that these come from"),
        ("--output-tokens", "T", 4, "generated per request, exactly"),
    )
    for flag, metavar, number, meaning in counts:
        told = f"{meaning} ({number})"
        add(flag, metavar=metavar, type=count, default=number, help=told)


def _settings(options: argparse.Namespace, console: Console) -> Settings:
    """What the command line asks for; a checkpoint is built where none was named."""
    source = checkpoints.find_source(options, console)
    fronts = [Front(number) for number in sorted(set(options.api_servers))]
    fronts += [Front(1, number) for number in sorted(set(options.renderer_workers))]
    return Settings(
        source=source,
        visual_tokens=source.visual_tokens,
        fronts=tuple(fronts),
        texts=tuple(sorted(set(options.texts))),
        methods=tuple(dict.fromkeys(options.methods)),
        budget=options.budget,
        requests=options.requests,
        rounds=options.rounds,
        clients=options.clients,
        client_processes=options.client_processes,
        output_tokens=options.output_tokens,
        kv_cache_gb=options.kv_cache_gb,
        seed=options.seed,
        output=options.output,
        beside=options.beside,
        most_other_load=options.most_other_load,
        extra_arguments=tuple(options.extra_arguments),
    )


if __name__ == "__main__":
    # By default it would end this process alone and leave the servers running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    sys.exit(main())
