"""Runs the servers of every front end beside each other and measures them in turn."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console

from benchmarks.conditions import STOCK, Condition
from benchmarks.host import asleep
from benchmarks.host.settings import Front, Settings
from benchmarks.jobs import Job
from benchmarks.load import Clients, Load, LoadError
from benchmarks.machine import OtherLoad
from benchmarks.order import balanced
from benchmarks.processes import Usage, by_role
from benchmarks.progress import progress_bar
from benchmarks.settings import SERVED_MODEL_NAME
from vllm_litelvlm.demo.server import Server, serve

#: How often a block is measured at most, where other processes disturb it.
_TRIES = 4


@dataclass(frozen=True)
class Block:
    """The requests of one round under one condition (by its name).

    ``processor``: seconds of every role's processes. ``busiest_client`` and ``other_load``, of
    processes that do not belong to the measurement, are in cores.
    """

    round: int
    front: str
    texts: int
    condition: str
    requests: int
    seconds: float
    prompt_tokens: int
    processor: dict[str, float]
    busiest_client: float
    other_load: float


@dataclass(frozen=True)
class Place:
    """Where a block belongs."""

    round: int
    texts: int
    condition: Condition


def places(settings: Settings) -> Iterator[Place]:
    """Every block of one front end, in the order of measurement."""
    for number in range(settings.rounds):
        for texts in settings.texts:
            for condition in balanced(settings.conditions, number):
                yield Place(number, texts, condition)


def measure(settings: Settings, console: Console) -> list[Block]:
    """Measure every front end, one after another.

    Raises ServerError when a server does not start, and LoadError when a request fails or a prompt
    is not shorter by exactly the tokens that were to go.
    """
    blocks: list[Block] = []
    with Clients(settings.client_processes, settings.seed) as clients:
        total = len(settings.fronts) * len(list(places(settings)))
        with progress_bar(console, 50, "blocks") as progress:
            task = progress.add_task("", total=total)
            for front in settings.fronts:
                progress.update(task, description=f"{front}: starting vllm serve ...")
                with ExitStack() as running:
                    run = _Run(settings, front, clients, start(settings, front, running))
                    run.warm_up()
                    for place in places(settings):
                        texts = f"{place.texts} text{'s' if place.texts > 1 else ''} an image"
                        told = f"{place.round + 1}: {front}, {texts}, {place.condition.name}"
                        progress.update(task, description=told)
                        blocks.append(run.block(place))
                        progress.advance(task)
    return blocks


def start(settings: Settings, front: Front, running: ExitStack) -> dict[str, Server]:
    """Start the servers of a front end at the same time, each until ``running`` is closed."""
    servers, plugin = {}, asleep.install(settings.output / "asleep")
    for name in settings.servers:
        servers[name] = running.enter_context(
            serve(
                settings.source.model,
                plugin=name != STOCK,
                clip_model=None if name == STOCK else settings.source.clip_model,
                options=settings.server_options(name),
                arguments=settings.server_arguments(front),
                environment=asleep.environment(plugin, settings.server_environment(name)),
                log=settings.output / f"{name}, {front}.log".replace(", ", "-").replace(" ", "-"),
                wait=False,
            )
        )
    for server in servers.values():
        server.wait_until_healthy()
    return servers


@dataclass
class _Run:
    settings: Settings
    front: Front
    clients: Clients
    servers: dict[str, Server]
    #: Tokens of a prompt with the whole image.
    whole: int = 0

    def warm_up(self) -> None:
        """Let every server do all that it will be measured at; stock tells the whole length."""
        for condition in self.settings.conditions:
            for texts in self.settings.texts:
                job = self._job(condition, texts, 4 * self.settings.clients)
                self.clients.prepare(job)
                load = self.clients.run()
                self.whole = self.whole or load.answers[0].prompt_tokens
                self.check(condition, load)

    def block(self, place: Place) -> Block:
        """Measure a block, again where other processes disturb it."""
        limit = self.settings.most_other_load
        for _ in range(_TRIES):
            block = self._block(place)
            if limit is None or block.other_load <= limit:
                break
        return block

    def _block(self, place: Place) -> Block:
        server = self.servers[place.condition.server]
        job = self._job(place.condition, place.texts, self.settings.requests)
        # Making images is not to be counted, so it is done before.
        self.clients.prepare(job)
        other_load, before = OtherLoad(), Usage.of(server)
        load = self.clients.run()
        used = by_role(Usage.of(server).since(before))
        cores = other_load.cores()
        self.check(place.condition, load)
        return Block(
            round=place.round,
            front=str(self.front),
            texts=place.texts,
            condition=place.condition.name,
            requests=len(load.answers),
            seconds=load.seconds,
            prompt_tokens=load.answers[0].prompt_tokens,
            processor=used,
            busiest_client=load.busiest_client,
            other_load=cores,
        )

    def _job(self, condition: Condition, texts: int, requests: int) -> Job:
        return Job(
            url=self.servers[condition.server].url,
            model=SERVED_MODEL_NAME,
            requests=requests,
            clients=self.settings.clients,
            texts=texts,
            output_tokens=self.settings.output_tokens,
            options=condition.options,
        )

    def check(self, condition: Condition, load: Load) -> None:
        """Raise LoadError where a request failed or has another length than it should."""
        load.check()
        pruned = self.settings.visual_tokens - (condition.budget or self.settings.visual_tokens)
        found = {answer.prompt_tokens for answer in load.answers}
        if found != {self.whole - pruned}:
            raise LoadError(
                f"{condition.name}: a prompt of {self.whole} tokens should have "
                f"{self.whole - pruned} after pruning, but the server counted {sorted(found)}."
            )
