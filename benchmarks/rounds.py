"""Runs the servers and measures them in turn, round by round."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass

from openai import AsyncOpenAI
from rich.console import Console

from benchmarks.client import Block, MeasurementError, Session, check_prompt_lengths
from benchmarks.conditions import STOCK, UNCACHED, Condition
from benchmarks.engine import (
    FEATURE_HITS,
    FEATURE_QUERIES,
    Capacity,
    capacity,
    metric,
    peaks,
    prompt_lengths,
    read_metrics,
)
from benchmarks.order import balanced
from benchmarks.progress import progress_bar
from benchmarks.record import Record
from benchmarks.settings import Case, Settings
from benchmarks.workload import Conversation, Workload, arrivals, count_images
from vllm_litelvlm.demo.server import Server, serve

#: How often a block is measured at most, where other processes disturb it.
_TRIES = 4


@dataclass(frozen=True)
class Place:
    """Where a block belongs."""

    round: int
    case: Case
    condition: Condition


def places(settings: Settings) -> Iterator[Place]:
    """Every block, in the order of measurement: a round holds all cases and conditions."""
    for number in range(settings.rounds):
        for case in settings.cases:
            for condition in balanced(settings.conditions(case.workload), number):
                yield Place(number, case, condition)


def measure(settings: Settings, record: Record, console: Console) -> None:
    """Start the servers, check them, and measure every block that ``record`` does not hold.

    Raises ServerError when a server does not start and MeasurementError when the plugin's prompts
    are not shorter by exactly the tokens that it was told to remove.
    """
    missing = [p for p in places(settings) if not record.has(p.round, p.case, p.condition.name)]
    if not missing:
        return
    with ExitStack() as running:
        servers = start(settings, running, console)
        asyncio.run(_Run(settings, servers, record, console).go())


def start(settings: Settings, running: ExitStack, console: Console) -> dict[str, Server]:
    """Start the servers, each until ``running`` is closed.

    One after another, as each looks what memory is free; at the same time where none has to.
    Raises ServerError when one does not start.
    """
    alone = settings.kv_cache_gb is None
    servers = {}
    for name in settings.servers:
        plugin = name != STOCK
        with console.status(f"Starting vllm serve ({name}) ..."):
            servers[name] = running.enter_context(
                serve(
                    settings.source.model,
                    plugin=plugin,
                    clip_model=settings.source.clip_model if plugin else None,
                    options=settings.server_options(name) if plugin else None,
                    arguments=settings.server_arguments,
                    environment=settings.server_environment(name),
                    log=settings.output / f"{name}.log",
                    wait=alone,
                )
            )
    if not alone:
        with console.status("Starting vllm serve ..."):
            for server in servers.values():
                server.wait_until_healthy()
    return servers


@dataclass
class _Run:
    settings: Settings
    servers: dict[str, Server]
    record: Record
    console: Console

    async def go(self) -> None:
        async with AsyncExitStack() as opened:
            self._clients = {
                name: await opened.enter_async_context(_client(server))
                for name, server in self.servers.items()
            }
            with self.console.status("Warming up, and checking that the plugin prunes ..."):
                for name in self.servers:
                    await self._warm_up(name)
                capacities = {name: await self._capacity(name) for name in self.servers}
            self.record.add_sitting(capacities)
            await self._measure_blocks()

    async def _warm_up(self, server: str) -> None:
        """Send a server as many requests at a time as it will get, with all of its conditions.

        They are of a sequence of their own, so that a run that goes on measures the same images.
        """
        workload = Workload(self.settings.seed + 1, self.settings.source.image_size)
        found = {
            condition.name: condition
            for name in self.settings.workloads
            for condition in self.settings.conditions(name)
            if condition.server == server
        }
        each = -(-max(self.settings.concurrency) // len(found))
        sessions = [self._session(condition) for condition in found.values()]
        prompts = [workload.take(each) for _ in sessions]
        loads = zip(sessions, prompts, strict=True)
        await asyncio.gather(*(session.closed_loop(some, each) for session, some in loads))
        for session in sessions:
            await self._check_lengths(session)

    async def _measure_blocks(self) -> None:
        settings, record = self.settings, self.record
        most_other_load = settings.most_other_load
        size = settings.source.image_size
        workload, spare = Workload(settings.seed, size), Workload(settings.seed + 2, size)
        each = {case: case.requests(settings.requests) for case in settings.cases}
        with progress_bar(self.console, 50, "requests") as progress:
            total = sum(each[place.case] for place in places(settings))
            task, done = progress.add_task("", total=total), 0
            for place in places(settings):
                case, name = place.case, place.condition.name
                # Taken also where it is not sent: every block has the same images in every sitting.
                conversations = workload.take(settings.requests, case.workload, case.size)
                if record.has(place.round, case, name):
                    done += each[case]
                    progress.update(task, completed=done)
                    continue
                progress.update(task, description=f"{place.round + 1}: {case.workload}, {name}")
                for _ in range(_TRIES):
                    progress.update(task, completed=done)
                    session = self._session(place.condition)
                    session.on_answer = lambda: progress.advance(task)
                    block = await self._block(place, session, conversations)
                    if most_other_load is None or block.other_load <= most_other_load:
                        break
                    conversations = spare.take(settings.requests, case.workload, case.size)
                done += each[case]
                record.add(block)

    async def _block(
        self, place: Place, session: Session, conversations: list[Conversation]
    ) -> Block:
        """Measure one block, and check afterwards that it was what it should have been."""
        server = self.servers[place.condition.server]
        before = await read_metrics(server)
        ended = asyncio.Event()
        watching = asyncio.create_task(peaks(server, ended))
        try:
            seconds, other_load = await session.timed(self._load(place, session, conversations))
        finally:
            ended.set()
        used, running = await watching
        after = await read_metrics(server)
        queries, hits = (
            int(metric(after, name) - metric(before, name))
            for name in (FEATURE_QUERIES, FEATURE_HITS)
        )
        await self._check_lengths(session)
        if place.condition.server == UNCACHED and hits:
            raise MeasurementError(f"The server without caches had {hits} images in its cache.")
        return Block(
            round=place.round,
            case=place.case,
            condition=place.condition.name,
            seconds=seconds,
            timings=tuple(session.timings),
            other_load=other_load,
            kv_cache_peak=used,
            running_peak=running,
            feature_queries=queries,
            feature_hits=hits,
        )

    async def _load(
        self, place: Place, session: Session, conversations: list[Conversation]
    ) -> None:
        case = place.case
        if case.rate is None:
            await session.closed_loop(conversations, case.concurrency or 1)
            return
        # The same arrivals for every condition of a round.
        seed = f"{self.settings.seed} {place.round} {case}"
        rate = case.rate / len(conversations[0].turns)
        await session.open_loop(conversations, arrivals(rate, len(conversations), seed))

    async def _check_lengths(self, session: Session) -> None:
        """Compare with what a server counts that prunes nothing of the very same messages."""
        counting = next(iter(self.servers.values()))  # one that prunes nothing unless told to
        full = await prompt_lengths(counting, session.prompts)
        budget = session.condition.budget
        each = 0 if budget is None else self.settings.visual_tokens - budget
        removed = [each * count_images(messages) for messages in session.prompts]
        check_prompt_lengths(session.timings, full, removed, session.condition.grows)

    async def _capacity(self, name: str) -> Capacity:
        server = self.servers[name]
        log = server.log.read_text(encoding="utf-8", errors="replace")
        return capacity(log, await read_metrics(server), self.settings.longest)

    def _session(self, condition: Condition) -> Session:
        client = self._clients[condition.server]
        return Session(client, condition, self.settings.output_tokens)


def _client(server: Server) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)
