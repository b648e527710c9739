"""What the benchmark on a GPU measures: servers, conditions, and blocks in their order."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.checkpoints import Source
from benchmarks.conditions import IDEAL, KEEP_ALL, PLUGIN, STOCK, STOCK_NAME, Condition
from benchmarks.order import balanced
from benchmarks.settings import SERVED_MODEL_NAME, memory_share

#: Servers, as their logs are named: the second has one API server, the others several.
ONE = f"{PLUGIN}-one-api-server"
SERVERS = (STOCK, PLUGIN, ONE)
#: How vLLM is started, until it does: arguments, and what they mean.
WAYS = (
    ("compiled", ()),
    (
        "CUDA graphs of decoding, not compiled",
        ('--compilation-config={"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}',),
    ),
    ("eager", ("--enforce-eager",)),
)
_BUDGETS = (192, 64)
#: Clients and requests of a block that is only to show that everything works.
_SMALL_CLIENTS, _SMALL_REQUESTS, _SMALL_OUTPUT = 8, 8, 4


@dataclass(frozen=True)
class Group:
    """Blocks that are compared with each other; the first condition is what the others are set to.

    ``loads`` are clients and requests.
    """

    name: str
    conditions: tuple[Condition, ...]
    loads: tuple[tuple[int, int], ...]
    texts: int = 1
    output_tokens: int = 8


@dataclass(frozen=True)
class Place:
    """One block."""

    group: Group
    round: int
    condition: Condition
    clients: int
    requests: int


@dataclass(frozen=True)
class Settings:
    """What is measured. ``api_servers``: of the servers that have several.

    ``small`` is to try it out: few requests, and methods at one batch.
    """

    source: Source
    visual_tokens: int
    geometry: str
    device: str
    api_servers: int
    client_processes: int
    rounds: int
    kv_cache_gb: float
    start_seconds: float
    seed: int
    output: Path
    small: bool = False
    extra_arguments: tuple[str, ...] = ()

    @property
    def groups(self) -> list[Group]:
        """The most telling ones first."""
        stock = Condition(STOCK_NAME, STOCK)
        whole, ideal = _pruned(KEEP_ALL, self.visual_tokens), _pruned(IDEAL, _BUDGETS[-1])
        pruned = [_pruned("litelvlm", budget) for budget in _BUDGETS]
        several = f"{self.api_servers} API servers"
        answer = _SMALL_OUTPUT if self.small else 64
        one = (replace(condition, server=ONE) for condition in (whole, *pruned, ideal))
        found = [
            Group(
                f"Every image new, {several}",
                (stock, whole, *pruned, ideal),
                ((1, 16), (8, 64), (32, 192), (128, 512)),
            ),
            Group("Every image new, 1 API server", tuple(one), ((1, 16), (32, 128), (128, 256))),
            Group(f"16 texts an image, {several}", (stock, pruned[-1]), ((16, 256),), texts=16),
            Group(
                f"Answers of {answer} tokens, {several}",
                (stock, *pruned),
                ((64, 256),),
                output_tokens=answer,
            ),
        ]
        return [_small(group) for group in found] if self.small else found

    @property
    def conditions(self) -> list[Condition]:
        """All that some group has."""
        every = {(c.server, c.name): c for group in self.groups for c in group.conditions}
        return list(every.values())

    def places(self) -> Iterator[Place]:
        """Every block, in the order of measurement."""
        for number in range(self.rounds):
            for group in self.groups:
                for clients, requests in group.loads:
                    for condition in balanced(group.conditions, number):
                        yield Place(group, number, condition, clients, requests)

    @property
    def ways(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """On a CPU compiling only delays the start."""
        return WAYS if self.device == "cuda" else WAYS[-1:]

    def server_arguments(self, server: str) -> list[str]:
        """Arguments of ``vllm serve`` without those of a way; the user's come last and win."""
        return [
            f"--served-model-name={SERVED_MODEL_NAME}",
            "--dtype=bfloat16",
            "--max-model-len=2048",
            f"--load-format={self.source.load_format}",
            f"--kv-cache-memory-bytes={int(self.kv_cache_gb * 2**30)}",
            f"--api-server-count={1 if server == ONE else self.api_servers}",
            *self._room,
            *self.extra_arguments,
        ]

    @property
    def _room(self) -> list[str]:
        """A server looks for so much free memory when it starts, also where it is told its own."""
        share = memory_share(len(SERVERS))
        return [f"--gpu-memory-utilization={share}"] if self.device == "cuda" else []

    def server_environment(self, server: str) -> dict[str, str]:
        """Further variables of a server."""
        variables = {"VLLM_PLUGINS": "" if server == STOCK else PLUGIN}
        if self.device == "cpu":  # there it outdoes the argument, and takes whole GiB only
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(self.kv_cache_gb))
        return variables


def _pruned(method: str, budget: int) -> Condition:
    ideal = " (ideal: no scoring)" if method == IDEAL else ""
    options = {"method": method, "budget": budget}
    return Condition(f"{method}, budget {budget}{ideal}", PLUGIN, options)


def _small(group: Group) -> Group:
    loads = {(min(clients, _SMALL_CLIENTS), _SMALL_REQUESTS) for clients, _ in group.loads}
    short = min(group.output_tokens, _SMALL_OUTPUT)
    return replace(group, loads=tuple(sorted(loads)), output_tokens=short)
