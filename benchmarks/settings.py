"""What a run measures: its settings, and the cases that follow from them."""

import argparse
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.beside import Beside
from benchmarks.checkpoints import Source
from benchmarks.conditions import (
    BESIDE,
    COMPACT,
    KEEP_ALL,
    NO_CACHES,
    ORIGINAL,
    PLUGIN,
    STOCK,
    UNCACHED,
    Condition,
    conditions_of,
)
from benchmarks.workload import WORKLOADS

SERVED_MODEL_NAME = "model"
_MOST_TEXTS = 64  # that the plugin takes by default
_TURN_TOKENS = 64  # more than any text of the workloads has


def memory_share(servers: int) -> float:
    """Of a graphics card's memory, what each of so many servers may take."""
    return math.floor(80 / servers) / 100


@dataclass(frozen=True)
class Case:
    """One load: all conditions are compared under it.

    ``size`` counts what the workload varies. Requests come from ``concurrency`` clients that wait
    for their answers, or at ``rate`` a second (on average over turns) whatever is under way.
    """

    workload: str
    size: int
    concurrency: int | None
    rate: float | None = None

    @property
    def load(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.concurrency} at a time"

    def requests(self, least: int) -> int:
        """Requests of a block: whole conversations, and all texts about an image."""
        each = self.size if WORKLOADS[self.workload].several else 1
        return each * math.ceil(least / each)

    def label(self, others: "list[Case]") -> str:
        """What tells this case from ``others``; empty where there are none."""
        parts = []
        if len({case.size for case in others}) > 1:
            parts.append(f"{self.size} {WORKLOADS[self.workload].unit}")
        if len({case.load for case in others}) > 1:
            parts.append(self.load)
        return ", ".join(parts)


@dataclass(frozen=True)
class Settings:
    """What is measured. ``requests`` is per round, case and condition.

    A block during which other processes kept more than ``most_other_load`` cores busy is measured
    again. With ``one_server``, keep-all on the plugin's server stands for stock vLLM. Where
    ``kv_cache_gb`` is None, every server takes a share of the memory for its KV cache.
    """

    source: Source
    visual_tokens: int
    workloads: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    expressions: tuple[int, ...]
    turns: int
    images_per_request: int
    requests: int
    rounds: int
    output_tokens: int
    concurrency: tuple[int, ...]
    rates: tuple[float, ...]
    seed: int
    output: Path
    positions: tuple[str, ...] = (COMPACT,)
    focus: tuple[float, ...] = ()
    beside: Beside | None = None
    one_server: bool = False
    most_other_load: float | None = None
    kv_cache_gb: float | None = None
    extra_arguments: tuple[str, ...] = ()

    @property
    def cases(self) -> list[Case]:
        """Every workload, size and load; closed loops before rates."""
        sizes = {
            "new": (1,),
            "expressions": self.expressions,
            "chat": (self.turns,),
            "gallery": (self.turns,),
            "images": (self.images_per_request,),
        }
        return [
            Case(workload, size, concurrency, rate)
            for workload in self.workloads
            for size in sizes[workload]
            for concurrency, rate in [
                *((count, None) for count in self.concurrency),
                *((None, rate) for rate in self.rates),
            ]
        ]

    def conditions(self, workload: str) -> tuple[Condition, ...]:
        beside = () if self.beside is None else self.beside.methods
        stock, *others = conditions_of(
            workload, self.methods, self.budgets, self.positions, self.focus, beside
        )
        if self.one_server:
            whole = {"method": KEEP_ALL, "budget": self.visual_tokens}
            stock = replace(stock, server=PLUGIN, options=whole)
        return (stock, *others)

    @property
    def servers(self) -> list[str]:
        """Those that some condition needs, the stock server first."""
        needed = {c.server for name in self.workloads for c in self.conditions(name)}
        return [name for name in (STOCK, PLUGIN, BESIDE, UNCACHED) if name in needed]

    def server_options(self, server: str) -> dict[str, Any]:
        """The plugin's options of a server that has the plugin."""
        if server == BESIDE:
            return {}
        options: dict[str, Any] = dict(NO_CACHES) if server == UNCACHED else {}
        if self.one_server:
            options["method"] = KEEP_ALL  # what requests without options are counted by
        if ORIGINAL in self.positions:
            options["positions"] = ORIGINAL
        most = max(self.expressions) if "expressions" in self.workloads else 0
        return options | ({"max_texts": most} if most > _MOST_TEXTS else {})

    def server_environment(self, server: str) -> dict[str, str]:
        """Further environment variables of a server."""
        plugins = {"VLLM_PLUGINS": "" if server == STOCK else PLUGIN}
        if server != BESIDE:
            return plugins
        assert self.beside is not None
        return {**plugins, **self.beside.environment}

    @property
    def server_arguments(self) -> list[str]:
        """Arguments of ``vllm serve`` that all servers get; the user's come last and win."""
        arguments = [
            f"--served-model-name={SERVED_MODEL_NAME}",
            "--dtype=bfloat16",
            f"--max-model-len={self.longest}",
            # Nothing bounds what is under way at a rate.
            f"--max-num-seqs={max(8, *self.concurrency, 64 if self.rates else 0)}",
            "--enable-prompt-tokens-details",
            f"--load-format={self.source.load_format}",
        ]
        if self.most_images > 1:
            arguments.append(f'--limit-mm-per-prompt={{"image": {self.most_images}}}')
        # The servers share a graphics card; on a processor compiling only delays the start.
        share = memory_share(len(self.servers))
        gpu = torch.cuda.is_available()
        arguments += [f"--gpu-memory-utilization={share}"] if gpu else ["--enforce-eager"]
        if self.kv_cache_gb is not None:
            arguments.append(f"--kv-cache-memory-bytes={int(self.kv_cache_gb * 2**30)}")
        return [*arguments, *self.extra_arguments]

    @property
    def dtype(self) -> str:
        """What the servers compute in."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--dtype")
        return str(parser.parse_known_args(self.server_arguments)[0].dtype)

    @property
    def most_images(self) -> int:
        """Images of the request that has the most."""
        images = {"images": self.images_per_request, "gallery": self.turns}
        return max(images.get(workload, 1) for workload in self.workloads)

    @property
    def longest(self) -> int:
        """Tokens of the longest request, 2048 or a larger multiple of 1024."""
        turns = self.turns if {"chat", "gallery"} & {*self.workloads} else 1
        words = turns * (_TURN_TOKENS + self.output_tokens)
        longest = self.most_images * self.visual_tokens + words
        return max(2048, 1024 * math.ceil(longest / 1024))

    def identity(self) -> dict[str, Any]:
        """What blocks must have in common to be compared: all but where they are written."""
        return {name: value for name, value in asdict(self).items() if name != "output"}
