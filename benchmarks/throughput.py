"""Throughput and time to first token of the plugin against stock vLLM, on the same checkpoint.

Real servers run with the same arguments: stock, where the plugin is not even loaded, and
``--plugin litelvlm`` (again where its caches are compared with none, or its package with another
checkout's). They are measured in turn, never at the same time: in every round each condition
answers the same number of new requests of the same workload under the same load, in an order that
favours none.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openai import OpenAIError
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.arguments import count, positive, share
from benchmarks.beside import Beside
from benchmarks.client import MeasurementError
from benchmarks.conditions import BESIDE, COMPACT, METHODS, ORIGINAL
from benchmarks.machine import Machine, command_line, package_versions
from benchmarks.record import Record
from benchmarks.report import summarise, tables, write
from benchmarks.rounds import measure
from benchmarks.settings import Settings
from benchmarks.throughput_plot import plot
from benchmarks.workload import WORKLOADS
from vllm_litelvlm.errors import LiteLVLMError


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = arguments_parser()
    options = parser.parse_args(given)
    checkpoints.check_arguments(parser, options)
    console = Console(stderr=True)
    machine, command = Machine.describe(), command_line("benchmarks.throughput", given)
    try:
        settings = _settings(options, console)
        if settings.budgets[0] > settings.visual_tokens:
            parser.error(f"--budgets: this model has {settings.visual_tokens} tokens per image")
        if settings.beside and BESIDE not in settings.servers:
            parser.error(
                "--beside: the other checkout has none of --methods, or no --workload has several "
                "texts about an image"
            )
        start = Record.resume if options.resume else Record.begin
        record = start(settings.output, _identity(settings, machine))
        measure(settings, record, console)
    except (LiteLVLMError, MeasurementError, OpenAIError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    rows = summarise(settings, record.blocks)
    model = settings.source.name
    write(settings, record, rows, machine, model=model, command=command)
    for workload in settings.workloads:
        some = [row for row in rows if row.case.workload == workload]
        load = f"{settings.output_tokens} output tokens, {settings.rounds} rounds"
        plot(some, settings.output / f"plot-{workload}.png", f"{model}; {load}\n{machine}")
    print(tables(rows))
    console.print(f"Written to {settings.output}: results.json, table.md, plot-*.png")
    return 0


def _identity(settings: Settings, machine: Machine) -> dict[str, Any]:
    """What must not have changed when a run goes on: blocks are compared with each other."""
    hardware = {key: value for key, value in asdict(machine).items() if key != "load_before"}
    return {**settings.identity(), **hardware, "versions": package_versions()}


def arguments_parser() -> argparse.ArgumentParser:
    """The command line. Counts are whole numbers from 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        usage="%(prog)s [options] [-- arguments of vllm serve, for all servers]",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    checkpoints.add_arguments(parser)
    add(
        "--budgets",
        metavar="B",
        type=count,
        nargs="+",
        default=[576, 192, 128, 64],
        help="visual tokens kept per image (default: 576 192 128 64)",
    )
    add(
        "--methods",
        metavar="METHOD",
        choices=METHODS,
        nargs="+",
        default=["litelvlm"],
        help="pruning methods (default: litelvlm); random, which scores nothing, is the ideal",
    )
    add(
        "--positions",
        choices=(COMPACT, ORIGINAL),
        nargs="+",
        default=[COMPACT],
        help="of kept tokens in the language model; with original ones the server is started for "
        "them (default: compact)",
    )
    add(
        "--focus",
        metavar="F",
        type=share,
        nargs="+",
        default=[0.25],
        help="shares of a budget that each text chooses in a layer of its own, where several texts "
        "are about an image and the method has layers (0.25)",
    )
    add(
        "--beside",
        metavar="PATH",
        type=Beside.at,
        help="another checkout of this project: a server with its package is compared, by its own "
        "defaults, where several texts are about an image",
    )
    _add_loads(parser)
    add("--seed", metavar="S", type=int, default=0, help="of images, texts and arrivals (0)")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("benchmarks/results/throughput"),
        help="for blocks.jsonl, results.json, table.md, plots and the servers' logs (%(default)s)",
    )
    add(
        "--one-server",
        action="store_true",
        help="where two do not fit: keep-all on the plugin's server, which is the code of stock "
        "vLLM, stands for stock vLLM",
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
        help="KV cache of every server, which then all start at the same time; by default each "
        "takes a share of the memory, and must start alone to see what is free",
    )
    add("--resume", action="store_true", help="go on from the blocks.jsonl of the same command")
    add("extra_arguments", nargs="*", help=argparse.SUPPRESS)
    return parser


def _add_loads(parser: argparse.ArgumentParser) -> None:
    """What is asked, and how fast."""
    add = parser.add_argument
    add(
        "--workload",
        choices=list(WORKLOADS),
        nargs="+",
        default=["new"],
        help="one or more; new (default): every image new; expressions: several texts about an "
        "image, one after another; chat: several turns about an image; gallery: each turn brings "
        "another image; images: several a request",
    )
    counts = (
        ("--turns", "T", 6, "of every chat and gallery"),
        ("--images-per-request", "I", 2, "of the workload images"),
        ("--requests", "N", 8, "requests per round, load and condition, in whole conversations"),
        ("--rounds", "R", 3, "repetitions; a single one gives no standard error"),
        ("--output-tokens", "T", 8, "generated per request, exactly"),
    )
    for flag, metavar, default, meaning in counts:
        add(flag, metavar=metavar, type=count, default=default, help=f"{meaning} ({default})")
    lists = (
        ("--expressions", "E", count, [2, 4, 16, 64], "texts about an image (2 4 16 64)"),
        ("--concurrency", "C", count, [4], "clients that wait for their answers (4)"),
        ("--rates", "R", positive, [], "besides, Poisson arrivals, so many a second (none)"),
    )
    for flag, metavar, kind, values, meaning in lists:
        add(flag, metavar=metavar, type=kind, nargs="+", default=values, help=meaning)


def _settings(options: argparse.Namespace, console: Console) -> Settings:
    """What the command line asks for; a checkpoint is built where none was named."""
    source = checkpoints.find_source(options, console)
    return Settings(
        source=source,
        visual_tokens=source.visual_tokens,
        workloads=tuple(dict.fromkeys(options.workload)),
        methods=tuple(dict.fromkeys(options.methods)),
        budgets=tuple(sorted(set(options.budgets), reverse=True)),
        expressions=tuple(sorted(set(options.expressions))),
        turns=options.turns,
        images_per_request=options.images_per_request,
        requests=options.requests,
        rounds=options.rounds,
        output_tokens=options.output_tokens,
        concurrency=tuple(sorted(set(options.concurrency))),
        rates=tuple(sorted(set(options.rates))),
        seed=options.seed,
        output=options.output,
        positions=tuple(dict.fromkeys(options.positions)),
        focus=tuple(sorted(set(options.focus))),
        beside=options.beside,
        one_server=options.one_server,
        most_other_load=options.most_other_load,
        kv_cache_gb=options.kv_cache_gb,
        extra_arguments=tuple(options.extra_arguments),
    )


if __name__ == "__main__":
    # By default it would end this process alone and leave the servers running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; --resume goes on from here"))
    sys.exit(main())
