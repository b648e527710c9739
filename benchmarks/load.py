"""Load on a server from processes of their own, so that no client is what is measured."""

import asyncio
import multiprocessing
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import aiohttp

from benchmarks.jobs import Job, Requests, share_of
from vllm_litelvlm.errors import LiteLVLMError

#: Seconds after which a request is given up.
_PATIENCE = 600
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens":(\d+)')


class LoadError(LiteLVLMError, RuntimeError):
    """A client process ended, or a server did not answer as it should have."""


@dataclass(frozen=True)
class Answer:
    """A request that was answered; seconds since it was sent."""

    first_token: float
    last_token: float
    prompt_tokens: int


@dataclass(frozen=True)
class Load:
    """What became of a job. ``failures`` are sentences; ``busiest_client`` is in cores."""

    seconds: float
    answers: tuple[Answer, ...]
    failures: tuple[str, ...]
    busiest_client: float

    @property
    def requests_per_second(self) -> float:
        return len(self.answers) / self.seconds

    def check(self) -> None:
        """Raise LoadError where a request was not answered."""
        if self.failures:
            asked = len(self.failures) + len(self.answers)
            raise LoadError(
                f"{len(self.failures)} of {asked} requests failed, first: {self.failures[0]}"
            )


class Clients:
    """Client processes until the ``with`` block ends; no two requests have the same image and text.

    Images and requests are made before a block begins, not in it.
    """

    def __init__(self, processes: int, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._at_work: list[Connection] = []
        self._processes = []
        for number in range(processes):
            ours, theirs = context.Pipe()
            arguments = (theirs, seed, number, processes)
            process = context.Process(target=_client, args=arguments, daemon=True)
            process.start()
            theirs.close()  # else the end of the process would not be noticed
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *error: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join(5)
            process.kill()

    def make_images(self, count: int) -> None:
        """Begin to make so many images in all, for blocks to come."""
        for number, pipe in enumerate(self._pipes):
            pipe.send(share_of(count, number, len(self._pipes)))

    def prepare(self, job: Job) -> None:
        """Have the requests of a job made; :meth:`run` sends them."""
        parts = job.split(len(self._pipes))
        self._at_work = self._pipes[: len(parts)]
        for pipe, part in zip(self._at_work, parts, strict=True):
            pipe.send(part)
        self._receive()

    def run(self) -> Load:
        """Put the prepared load on the server, all processes at the same moment."""
        began = time.perf_counter()
        for pipe in self._at_work:
            pipe.send("go")
        found = self._receive()
        seconds = time.perf_counter() - began
        results = [result for part, _ in found for result in part]
        return Load(
            seconds,
            tuple(result for result in results if isinstance(result, Answer)),
            tuple(result for result in results if isinstance(result, str)),
            max(used for _, used in found) / seconds,
        )

    def _receive(self) -> list[Any]:
        """What every process that has something to do says."""
        try:
            return [pipe.recv() for pipe in self._at_work]
        except EOFError as error:
            raise LoadError("A client process ended; its traceback stands above.") from error


def _client(pipe: Connection, seed: int, number: int, processes: int) -> None:
    """The life of a client process: makes images and does jobs until its pipe is closed."""
    requests = Requests(seed, number, processes)
    while True:
        try:
            job: Job | int = pipe.recv()
        except EOFError:
            return
        if isinstance(job, int):
            requests.make_images(job)
            continue
        bodies = requests.bodies(job)
        pipe.send("ready")
        pipe.recv()
        used = time.process_time()
        results = asyncio.run(_ask_all(job, bodies))
        pipe.send((results, time.process_time() - used))


async def _ask_all(job: Job, bodies: Sequence[bytes]) -> list[Answer | str]:
    waiting: Iterator[bytes] = iter(bodies)
    results: list[Answer | str] = []

    async def one_after_another(session: aiohttp.ClientSession) -> None:
        for body in waiting:
            try:
                results.append(await _ask(session, f"{job.url}/v1/chat/completions", body))
            except (aiohttp.ClientError, TimeoutError) as error:
                results.append(f"{type(error).__name__}: {error}")

    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=_PATIENCE),
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Content-Type": "application/json"},
    ) as session:
        await asyncio.gather(*(one_after_another(session) for _ in range(job.clients)))
    return results


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes) -> Answer | str:
    """Read a stream to its end, parsing as little as possible; a sentence says what failed."""
    sent = time.perf_counter()
    first = last = None
    prompt_tokens = None
    async with session.post(url, data=body) as response:
        if response.status != 200:
            return f"HTTP {response.status}: {(await response.text())[:300]}"
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            if b'"choices":[]' in line:
                found = _PROMPT_TOKENS.search(line)
                prompt_tokens = int(found[1]) if found else None
            elif b'"role":"assistant"' not in line:
                last = time.perf_counter()
                first = first or last
    if first is None or last is None or prompt_tokens is None:
        return "The stream ended without a token or without its usage."
    return Answer(first - sent, last - sent, prompt_tokens)
