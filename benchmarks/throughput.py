"""Throughput and time to first token of the plugin against stock vLLM, on the same checkpoint.

Two real servers run with the same arguments: stock, where the plugin is not even loaded, and
``--plugin litelvlm``. They are measured in turn, never at the same time: in every round the stock
server and the plugin at every budget answer the same number of new requests, and the order
rotates from round to round.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from openai import AsyncOpenAI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.client import (
    SERVED_MODEL_NAME,
    Block,
    MeasurementError,
    check_prompt_lengths,
    closed_loop,
    send,
)
from benchmarks.machine import Machine, package_versions
from benchmarks.report import Row, markdown_table, plot, summarise
from benchmarks.workload import Workload
from vllm_litelvlm.activation import PLUGIN_NAME
from vllm_litelvlm.demo.checkpoint import LARGE, SMALL, Checkpoint, build_checkpoint
from vllm_litelvlm.demo.server import Server, serve
from vllm_litelvlm.errors import LiteLVLMError

GEOMETRIES = {"large": LARGE, "small": SMALL}
CHECKPOINTS = Path("benchmarks/results/checkpoints")


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__.split("\n\n")[0],
        epilog="Arguments after -- go to both servers, e.g. -- --max-num-seqs 16",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help="LLaVA-1.5 checkpoint; without it one with random weights is built")
    add("--clip-model", help="CLIP of the model's vision tower; default: the plugin's own")
    add(
        "--geometry",
        choices=sorted(GEOMETRIES),
        default="large",
        help="size of the built checkpoint: large has a 1.1B language model and CLIP-L/336",
    )
    add(
        "--budgets",
        type=_positive,
        nargs="+",
        default=[576, 192, 128, 64],
        help="visual tokens kept per image",
    )
    add("--requests", type=_positive, default=8, help="per round, server and budget")
    add("--rounds", type=_positive, default=3, help="repetitions; one gives no standard error")
    add("--output-tokens", type=_positive, default=8, help="generated per request, always")
    add("--concurrency", type=_positive, default=4, help="requests under way at the same time")
    add("--seed", type=int, default=0, help="of images and questions")
    add(
        "--output",
        type=Path,
        default=Path("benchmarks/results/throughput"),
        help="folder for results.json, table.md, plot.png and the logs of both servers",
    )
    add("server_arguments", nargs="*", metavar="-- SERVER_ARGUMENT", help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number from 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = arguments_parser()
    options = parser.parse_args(given)
    if options.clip_model and not options.model:
        parser.error("--clip-model belongs to --model; the built checkpoint brings its own CLIP")
    options.budgets = sorted(set(options.budgets), reverse=True)
    console = Console(stderr=True)
    machine = Machine.describe()
    try:
        checkpoint = _checkpoint(options, console)
        visual_tokens = _visual_tokens(checkpoint[0])
        if options.budgets[0] > visual_tokens:
            parser.error(f"--budgets: at most {visual_tokens}, the model's tokens per image")
        blocks = _measure(options, checkpoint, visual_tokens, console)
    except* (LiteLVLMError, MeasurementError) as errors:
        console.print(f"error: {errors.exceptions[0]}", style="red", markup=False)
        return 1
    command = shlex.join(["python", "-m", "benchmarks.throughput", *given])
    rows = summarise(blocks)
    _write(options, machine, command, blocks, rows)
    print(markdown_table(rows))
    console.print(f"Written to {options.output}: results.json, table.md, plot.png")
    return 0


def _checkpoint(options: argparse.Namespace, console: Console) -> tuple[str, str | None]:
    """The model and its CLIP, built when the user named none."""
    if options.model:
        return options.model, options.clip_model
    folder = CHECKPOINTS / options.geometry
    with console.status(f"Building the {options.geometry} checkpoint in {folder} ..."):
        built: Checkpoint = build_checkpoint(folder, GEOMETRIES[options.geometry], torch.bfloat16)
    console.print(f"Weights in {folder} are random, which does not matter for speed.")
    return str(built.llava), str(built.clip)


def _visual_tokens(model: str) -> int:
    from transformers import AutoConfig

    vision = AutoConfig.from_pretrained(model).vision_config
    return (vision.image_size // vision.patch_size) ** 2


def server_arguments(options: argparse.Namespace, has_gpu: bool) -> list[str]:
    """The arguments of ``vllm serve`` that both servers get; the user's come last and win."""
    common = [
        f"--served-model-name={SERVED_MODEL_NAME}",
        "--dtype=bfloat16",
        "--max-model-len=2048",
        f"--max-num-seqs={max(8, options.concurrency)}",
    ]
    # A graphics card is shared by the two servers; on a processor compiling only delays the start.
    common += ["--gpu-memory-utilization=0.4"] if has_gpu else ["--enforce-eager"]
    return [*common, *options.server_arguments]


def rotated(conditions: Sequence[int | None], round: int) -> list[int | None]:
    """The order of a round: each starts one further than the round before."""
    start = round % len(conditions)
    return [*conditions[start:], *conditions[:start]]


def _measure(
    options: argparse.Namespace,
    checkpoint: tuple[str, str | None],
    visual_tokens: int,
    console: Console,
) -> list[Block]:
    model, clip_model = checkpoint
    common = server_arguments(options, torch.cuda.is_available())
    with ExitStack() as running:
        with console.status("Starting stock vllm serve ..."):
            stock = running.enter_context(
                serve(
                    model,
                    plugin=False,
                    arguments=common,
                    environment={"VLLM_PLUGINS": ""},
                    log=options.output / "stock.log",
                )
            )
        with console.status(f"Starting vllm serve --plugin {PLUGIN_NAME} ..."):
            pruning = running.enter_context(
                serve(
                    model,
                    clip_model=clip_model,
                    arguments=common,
                    environment={"VLLM_PLUGINS": PLUGIN_NAME},
                    log=options.output / f"{PLUGIN_NAME}.log",
                )
            )
        return asyncio.run(_run_rounds(options, stock, pruning, visual_tokens, console))


async def _run_rounds(
    options: argparse.Namespace,
    stock: Server,
    pruning: Server,
    visual_tokens: int,
    console: Console,
) -> list[Block]:
    workload = Workload(options.seed)
    conditions = [None, *options.budgets]
    async with _client(stock) as to_stock, _client(pruning) as to_plugin:
        with console.status("Warming up, and checking that the plugin prunes ..."):
            for budget in options.budgets:
                (prompt,) = workload.take(1)
                full = await send(to_stock, prompt, None, options.output_tokens, 0)
                pruned = await send(to_plugin, prompt, budget, options.output_tokens, 0)
                check_prompt_lengths([full], [pruned], budget, visual_tokens)
        orders = [rotated(conditions, number) for number in range(options.rounds)]
        with console.status("Encoding images ..."):
            prompts = [[workload.take(options.requests) for _ in order] for order in orders]
        blocks: list[Block] = []
        with _progress(console) as progress:
            total = options.rounds * len(conditions) * options.requests
            task = progress.add_task("", total=total)
            for number, order in enumerate(orders):
                for budget, batch in zip(order, prompts[number], strict=True):
                    server = "stock" if budget is None else f"budget {budget}"
                    progress.update(task, description=f"round {number + 1}: {server}")
                    block = await closed_loop(
                        to_stock if budget is None else to_plugin,
                        batch,
                        budget=budget,
                        output_tokens=options.output_tokens,
                        concurrency=options.concurrency,
                        round=number,
                        on_answer=lambda: progress.advance(task),
                    )
                    check_prompt_lengths(
                        [full], block.timings, budget or visual_tokens, visual_tokens
                    )
                    blocks.append(block)
    return blocks


def _client(server: Server) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeElapsedColumn(),
    )
    # Drawing takes time from the cores that are measured.
    return Progress(*columns, console=console, refresh_per_second=1)


def _write(
    options: argparse.Namespace,
    machine: Machine,
    command: str,
    blocks: Sequence[Block],
    rows: Sequence[Row],
) -> None:
    versions = package_versions()
    model = options.model or f"LLaVA-1.5 layout, {options.geometry}, random weights"
    load = (
        f"{options.concurrency} requests at a time, {options.output_tokens} output tokens, "
        f"{options.rounds} rounds of {options.requests} requests"
    )
    result = {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.to_json(),
        "versions": versions,
        "model": model,
        "server_arguments": server_arguments(options, torch.cuda.is_available()),
        "options": {name: _plain(value) for name, value in vars(options).items()},
        "summary": [row.to_json() for row in rows],
        "blocks": [asdict(block) for block in blocks],
    }
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [
        markdown_table(rows),
        "",
        f"{model}; bfloat16; {load}. {machine}. {listed}. Ratios are to stock in the same round; "
        "± is one standard error over rounds.",
        "",
        f"    {command}",
    ]
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    plot(rows, folder / "plot.png", f"{model}\n{machine}; {load}")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
