"""Runs both servers and measures them in turn, round by round."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from openai import AsyncOpenAI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.client import SERVED_MODEL_NAME, Block, check_prompt_lengths, closed_loop, send
from benchmarks.workload import Workload
from vllm_litelvlm.activation import PLUGIN_NAME
from vllm_litelvlm.demo.server import Server, serve

Condition = TypeVar("Condition")


@dataclass(frozen=True)
class Settings:
    """What is measured. ``requests`` is per round, server and budget."""

    model: str
    clip_model: str | None
    visual_tokens: int
    budgets: tuple[int, ...]
    requests: int
    rounds: int
    output_tokens: int
    concurrency: int
    seed: int
    output: Path
    extra_arguments: tuple[str, ...] = ()

    @property
    def server_arguments(self) -> list[str]:
        """Arguments of ``vllm serve`` that both servers get; the user's come last and win."""
        common = [
            f"--served-model-name={SERVED_MODEL_NAME}",
            "--dtype=bfloat16",
            "--max-model-len=2048",
            f"--max-num-seqs={max(8, self.concurrency)}",
        ]
        # The two servers share a graphics card; on a processor compiling only delays the start.
        gpu = torch.cuda.is_available()
        common += ["--gpu-memory-utilization=0.4"] if gpu else ["--enforce-eager"]
        return [*common, *self.extra_arguments]


def measure(settings: Settings, console: Console) -> list[Block]:
    """Start the servers, check them, measure every round.

    Raises ServerError when a server does not start and MeasurementError when the plugin's prompts
    are not shorter by exactly the tokens that it was told to remove.
    """
    common = settings.server_arguments
    with ExitStack() as running:
        with console.status("Starting stock vllm serve ..."):
            stock = running.enter_context(
                serve(
                    settings.model,
                    plugin=False,
                    arguments=common,
                    environment={"VLLM_PLUGINS": ""},
                    log=settings.output / "stock.log",
                )
            )
        with console.status(f"Starting vllm serve --plugin {PLUGIN_NAME} ..."):
            pruning = running.enter_context(
                serve(
                    settings.model,
                    clip_model=settings.clip_model,
                    arguments=common,
                    environment={"VLLM_PLUGINS": PLUGIN_NAME},
                    log=settings.output / f"{PLUGIN_NAME}.log",
                )
            )
        return asyncio.run(_run_rounds(settings, stock, pruning, console))


def rotated(conditions: Sequence[Condition], round: int) -> list[Condition]:
    """The order of a round: each starts one further than the round before."""
    start = round % len(conditions)
    return [*conditions[start:], *conditions[:start]]


async def _run_rounds(
    settings: Settings, stock: Server, pruning: Server, console: Console
) -> list[Block]:
    workload = Workload(settings.seed)
    orders = [rotated([None, *settings.budgets], number) for number in range(settings.rounds)]
    async with _client(stock) as to_stock, _client(pruning) as to_plugin:
        with console.status("Warming up, and checking that the plugin prunes ..."):
            full_length = await _check(settings, to_stock, to_plugin, workload)
        with console.status("Encoding images ..."):
            prompts = [[workload.take(settings.requests) for _ in order] for order in orders]
        blocks: list[Block] = []
        with _progress(console) as progress:
            total = sum(map(len, orders)) * settings.requests
            task = progress.add_task("", total=total)
            for number, order in enumerate(orders):
                for budget, batch in zip(order, prompts[number], strict=True):
                    server = "stock" if budget is None else f"budget {budget}"
                    progress.update(task, description=f"round {number + 1}: {server}")
                    block = await closed_loop(
                        to_stock if budget is None else to_plugin,
                        batch,
                        budget=budget,
                        output_tokens=settings.output_tokens,
                        concurrency=settings.concurrency,
                        round=number,
                        on_answer=lambda: progress.advance(task),
                    )
                    removed = 0 if budget is None else settings.visual_tokens - budget
                    check_prompt_lengths(block.timings, full_length, removed)
                    blocks.append(block)
    return blocks


async def _check(
    settings: Settings, to_stock: AsyncOpenAI, to_plugin: AsyncOpenAI, workload: Workload
) -> int:
    """Send the same prompts to both servers; return their number of tokens without pruning.

    Every budget occurs. This is the warm-up too, so each server gets as many requests at a time as
    it will while it is measured.
    """
    prompts = workload.take(max(settings.concurrency, len(settings.budgets)))
    budgets = [settings.budgets[i % len(settings.budgets)] for i in range(len(prompts))]
    tokens = settings.output_tokens
    full = await asyncio.gather(*(send(to_stock, prompt, None, tokens) for prompt in prompts))
    pruned = await asyncio.gather(
        *(
            send(to_plugin, prompt, budget, tokens)
            for prompt, budget in zip(prompts, budgets, strict=True)
        )
    )
    full_length = full[0].prompt_tokens
    check_prompt_lengths(full, full_length, removed=0)
    for timing, budget in zip(pruned, budgets, strict=True):
        check_prompt_lengths([timing], full_length, settings.visual_tokens - budget)
    return full_length


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
