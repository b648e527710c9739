"""Holds conversations with one server and writes down when tokens come."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

from benchmarks.conditions import Condition
from benchmarks.machine import OtherLoad
from benchmarks.settings import SERVED_MODEL_NAME, Case
from benchmarks.workload import Conversation
from vllm_litelvlm.options import OPTIONS_KEY


class MeasurementError(RuntimeError):
    """The servers did not do what was to be measured."""


@dataclass(frozen=True)
class Timing:
    """One request. Seconds: ``sent`` since its block began, the others since it was sent.

    ``cached_tokens`` of the prompt were in the prefix cache; None where the server does not say.
    """

    sent: float
    first_token: float
    last_token: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    turn: int = 0

    @property
    def inter_token_latency(self) -> float | None:
        """Mean seconds between tokens; None where there was only one."""
        if self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Block:
    """The requests of one round, case and condition (by its name).

    ``other_load`` is in cores: what processes that do not belong to the measurement kept busy.
    ``kv_cache_peak`` is a share, and ``running_peak`` how many requests the engine ran at once,
    both the highest that was seen. The vision tower was to see ``feature_queries`` images, and
    ``feature_hits`` of them were in the plugin's cache.
    """

    round: int
    case: Case
    condition: str
    seconds: float
    timings: tuple[Timing, ...]
    other_load: float = 0.0
    kv_cache_peak: float = 0.0
    running_peak: int = 0
    feature_queries: int = 0
    feature_hits: int = 0


@dataclass
class Session:
    """Conversations with one server under one condition, and what they took.

    ``prompts`` are the messages of each request, in the order of ``timings``.
    """

    client: AsyncOpenAI
    condition: Condition
    output_tokens: int
    on_answer: Callable[[], None] = lambda: None
    timings: list[Timing] = field(default_factory=list)
    prompts: list[list[dict[str, Any]]] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)

    async def closed_loop(self, conversations: Sequence[Conversation], clients: int) -> None:
        """Hold each conversation as soon as fewer than ``clients`` are under way."""
        waiting = iter(conversations)

        async def hold_one_after_another() -> None:
            for conversation in waiting:
                await self._hold(conversation)

        await asyncio.gather(*(hold_one_after_another() for _ in range(clients)))

    async def open_loop(
        self, conversations: Sequence[Conversation], arrivals: Sequence[float]
    ) -> None:
        """Begin each conversation at its time, whatever is under way."""

        async def hold_at(arrival: float, conversation: Conversation) -> None:
            await asyncio.sleep(arrival - (time.perf_counter() - self._began))
            await self._hold(conversation)

        await asyncio.gather(*map(hold_at, arrivals, conversations))

    async def timed(self, load: Awaitable[None]) -> tuple[float, float]:
        """Seconds that ``load`` took, and the cores that other processes kept busy meanwhile."""
        other_load = OtherLoad()
        self._began = time.perf_counter()
        await load
        return time.perf_counter() - self._began, other_load.cores()

    async def _hold(self, conversation: Conversation) -> None:
        answers: list[str] = []
        for turn in range(len(conversation.turns)):
            messages = conversation.messages(answers)
            options = self.condition.request_options(conversation, turn)
            timing, answer = await self._send(messages, options, turn)
            answers.append(answer)
            self.timings.append(timing)
            self.prompts.append(messages)
            self.on_answer()

    async def _send(
        self, messages: list[dict[str, Any]], options: dict[str, Any] | None, turn: int
    ) -> tuple[Timing, str]:
        """Send a request and read its stream to the end."""
        given = {} if options is None else {"mm_processor_kwargs": {OPTIONS_KEY: options}}
        sent = time.perf_counter()
        stream = await self.client.chat.completions.create(
            model=SERVED_MODEL_NAME,
            messages=messages,
            temperature=0,
            max_tokens=self.output_tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, **given},
        )
        arrivals: list[float] = []
        answer = ""
        usage = None
        async for chunk in stream:
            usage = chunk.usage or usage
            # The chunk that names the role may come before the first token; a token's text may
            # be "".
            if chunk.choices and chunk.choices[0].delta.role is None:
                arrivals.append(time.perf_counter())
                answer += chunk.choices[0].delta.content or ""
        if usage is None or not arrivals or usage.completion_tokens != self.output_tokens:
            raise MeasurementError(
                f"Asked for {self.output_tokens} tokens; the stream ended with {len(arrivals)} "
                f"chunks and usage {usage}."
            )
        details = usage.prompt_tokens_details
        timing = Timing(
            sent=sent - self._began,
            first_token=arrivals[0] - sent,
            last_token=arrivals[-1] - sent,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cached_tokens=None if details is None else details.cached_tokens,
            turn=turn,
        )
        return timing, answer


def check_prompt_lengths(
    timings: Sequence[Timing], full: Sequence[int], removed: Sequence[int], grows: bool = False
) -> None:
    """Raise MeasurementError unless every prompt is ``removed`` tokens below its ``full`` length.

    Where a conversation ``grows``, turns after its first may have up to the full length. Without
    this a plugin that silently does nothing would be measured.
    """
    if not timings:
        raise MeasurementError("No request was measured.")
    for timing, length, fewer in zip(timings, full, removed, strict=True):
        least = length - fewer
        most = length if grows and timing.turn > 0 else least
        if not least <= timing.prompt_tokens <= most:
            raise MeasurementError(
                f"A prompt of {length} tokens should have {least} after removing {fewer} visual "
                f"tokens, but the server counted {timing.prompt_tokens}."
            )
