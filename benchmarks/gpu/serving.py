"""Runs the servers beside each other on one device and measures them in turn."""

import asyncio
import statistics
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

from rich.console import Console

from benchmarks.conditions import STOCK, Condition
from benchmarks.engine import FEATURE_HITS, FEATURE_QUERIES, metric, read_metrics
from benchmarks.gpu.journal import Journal, ServingBlock
from benchmarks.gpu.limit import Limit
from benchmarks.gpu.settings import SERVERS, Place, Settings
from benchmarks.jobs import Job
from benchmarks.load import Clients, LoadError
from benchmarks.machine import OtherLoad
from benchmarks.processes import Usage
from benchmarks.progress import progress_bar
from benchmarks.settings import SERVED_MODEL_NAME
from vllm_litelvlm.demo.server import Server, ServerError, serve

_GUIDANCE, _SELECTION = "litelvlm_guidance_seconds_sum", "litelvlm_selection_seconds_sum"
_BATCHES = "litelvlm_selection_seconds_count"
_METRICS = (_GUIDANCE, _SELECTION, _BATCHES, FEATURE_QUERIES, FEATURE_HITS)
#: How many of a server's processes are told.
_BUSIEST = 4
#: Requests and clients that warm a condition up.
_WARM_UP, _SMALL_WARM_UP = (48, 24), (8, 4)


def measure_serving(settings: Settings, journal: Journal, limit: Limit, console: Console) -> None:
    """Start everything and measure block by block, until the limit.

    Raises ServerError where no way of starting helps, and LoadError where a server answers nothing.
    """
    places = list(settings.places())
    with Clients(settings.client_processes, settings.seed) as clients, ExitStack() as running:
        # They are made while the servers start.
        clients.make_images(sum(-(-place.requests // place.group.texts) for place in places))
        servers = start(settings, running, journal, limit, console)
        run = _Run(settings, servers, clients)
        with console.status("Warming up ..."):
            for condition in settings.conditions:
                run.warm_up(condition)
        with progress_bar(console, 70, "blocks") as progress:
            task = progress.add_task("", total=len(places))
            for place in places:
                if limit.passed:
                    break
                told = f"{place.group.name}, {place.clients} at a time, {place.condition.name}"
                progress.update(task, description=told)
                journal.add_serving_block(run.block(place))
                progress.advance(task)
    if len(journal.serving) < len(places):
        journal.add_trouble(
            f"Time ran out after {len(journal.serving)} of {len(places)} blocks of requests."
        )


def start(
    settings: Settings, running: ExitStack, journal: Journal, limit: Limit, console: Console
) -> dict[str, Server]:
    """Start all servers in the first of the settings' ways in which they do."""
    for number, (way, arguments) in enumerate(settings.ways):
        with console.status(f"Starting vllm serve ({way}) ..."), ExitStack() as attempt:
            try:
                servers = {
                    name: attempt.enter_context(_serve(settings, name, arguments))
                    for name in SERVERS
                }
                for server in servers.values():
                    server.wait_until_healthy(min(settings.start_seconds, limit.left))
            except ServerError as error:
                journal.add_trouble(f"Servers did not start, {way}: {error}")
                if number + 1 == len(settings.ways) or limit.passed:
                    raise
                continue
            running.enter_context(attempt.pop_all())
            journal.add_way(way)
            return servers
    raise AssertionError("a way was tried")


def _serve(
    settings: Settings, name: str, arguments: tuple[str, ...]
) -> AbstractContextManager[Server]:
    plugin = name != STOCK
    return serve(
        settings.source.model,
        plugin=plugin,
        clip_model=settings.source.clip_model if plugin else None,
        arguments=[*settings.server_arguments(name), *arguments],
        environment=settings.server_environment(name),
        log=settings.output / f"{name}.log",
        wait=False,
    )


@dataclass(frozen=True)
class _Run:
    settings: Settings
    servers: dict[str, Server]
    clients: Clients

    def warm_up(self, condition: Condition) -> None:
        """Let a server do what it will be measured at, and see that it answers everything."""
        requests, clients = _SMALL_WARM_UP if self.settings.small else _WARM_UP
        self.clients.prepare(self._job(condition, requests, clients))
        self.clients.run().check()

    def block(self, place: Place) -> ServingBlock:
        """Measure one block."""
        group, server = place.group, self.servers[place.condition.server]
        job = self._job(place.condition, place.requests, place.clients)
        self.clients.prepare(replace(job, texts=group.texts, output_tokens=group.output_tokens))
        other_load, usage, metrics = OtherLoad(), Usage.of(server), _metrics(server)
        load = self.clients.run()
        used, cores = Usage.of(server).since(usage), other_load.cores()
        if not load.answers:
            raise LoadError(f"{server.log}: no request was answered, first: {load.failures[0]}")
        counted = {name: value - metrics[name] for name, value in _metrics(server).items()}
        return ServingBlock(
            group=group.name,
            round=place.round,
            condition=place.condition.name,
            clients=place.clients,
            seconds=load.seconds,
            first_tokens=tuple(round(answer.first_token, 5) for answer in load.answers),
            prompt_tokens=statistics.fmean(answer.prompt_tokens for answer in load.answers),
            failures=load.failures,
            busiest=tuple((one.role, one.seconds / load.seconds) for one in used[:_BUSIEST]),
            busiest_client=load.busiest_client,
            guidance_seconds=counted[_GUIDANCE],
            selection_seconds=counted[_SELECTION],
            encoder_batches=int(counted[_BATCHES]),
            encoded_images=int(counted[FEATURE_QUERIES] - counted[FEATURE_HITS]),
            other_load=cores,
        )

    def _job(self, condition: Condition, requests: int, clients: int) -> Job:
        url = self.servers[condition.server].url
        return Job(url, SERVED_MODEL_NAME, requests, clients, options=condition.options)


def _metrics(server: Server) -> dict[str, float]:
    text = asyncio.run(read_metrics(server))
    return {name: metric(text, name) for name in _METRICS}
