"""Sends prompts to one server, a fixed number at a time, and writes down when tokens come."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openai import AsyncOpenAI

from benchmarks.machine import OtherLoad
from benchmarks.workload import Prompt
from vllm_litelvlm.options import OPTIONS_KEY

SERVED_MODEL_NAME = "model"


class MeasurementError(RuntimeError):
    """The servers did not do what was to be measured."""


@dataclass(frozen=True)
class Timing:
    """One request. Seconds: ``sent`` since its block began, the others since it was sent."""

    sent: float
    first_token: float
    last_token: float
    prompt_tokens: int
    output_tokens: int

    @property
    def inter_token_latency(self) -> float | None:
        """Mean seconds between tokens; None where there was only one."""
        if self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Block:
    """The requests of one round at one server and budget (None: the stock server).

    ``other_load`` is in cores: what processes that do not belong to the measurement kept busy.
    """

    round: int
    budget: int | None
    seconds: float
    timings: tuple[Timing, ...]
    other_load: float = 0.0


async def send(
    client: AsyncOpenAI, prompt: Prompt, budget: int | None, output_tokens: int, began: float = 0.0
) -> Timing:
    """Send one prompt and read its stream to the end. ``began`` is when its block began."""
    options = {} if budget is None else {"mm_processor_kwargs": {OPTIONS_KEY: {"budget": budget}}}
    sent = time.perf_counter()
    stream = await client.chat.completions.create(
        model=SERVED_MODEL_NAME,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": prompt.image}},
                    {"type": "text", "text": prompt.question},
                ],
            }
        ],
        temperature=0,
        max_tokens=output_tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, **options},
    )
    arrivals: list[float] = []
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        # The chunk that names the role may come before the first token; a token's text may be "".
        if chunk.choices and chunk.choices[0].delta.role is None:
            arrivals.append(time.perf_counter())
    if usage is None or not arrivals or usage.completion_tokens != output_tokens:
        raise MeasurementError(
            f"Asked for {output_tokens} tokens; the stream ended with {len(arrivals)} chunks and "
            f"usage {usage}."
        )
    return Timing(
        sent=sent - began,
        first_token=arrivals[0] - sent,
        last_token=arrivals[-1] - sent,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )


async def closed_loop(
    client: AsyncOpenAI,
    prompts: Sequence[Prompt],
    *,
    budget: int | None,
    output_tokens: int,
    concurrency: int,
    round: int,
    on_answer: Callable[[], None],
) -> Block:
    """Send ``prompts``, each as soon as fewer than ``concurrency`` are under way."""
    waiting = iter(prompts)
    timings: list[Timing] = []
    other_load = OtherLoad()
    began = time.perf_counter()

    async def send_one_after_another() -> None:
        for prompt in waiting:
            timings.append(await send(client, prompt, budget, output_tokens, began))
            on_answer()

    await asyncio.gather(*(send_one_after_another() for _ in range(concurrency)))
    seconds = time.perf_counter() - began
    return Block(
        round=round,
        budget=budget,
        seconds=seconds,
        timings=tuple(timings),
        other_load=other_load.cores(),
    )


def check_prompt_lengths(timings: Sequence[Timing], full_length: int, removed: int) -> None:
    """Raise MeasurementError unless every prompt is ``removed`` tokens below ``full_length``.

    Without this a plugin that silently does nothing would be measured.
    """
    found = sorted({timing.prompt_tokens for timing in timings})
    if found != [full_length - removed]:
        raise MeasurementError(
            f"Prompts of {full_length} tokens should have {full_length - removed} after removing "
            f"{removed} visual tokens, but the server counted {found}."
        )
