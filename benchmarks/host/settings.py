"""What the host benchmark measures, and the servers that it takes."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.beside import Beside
from benchmarks.checkpoints import Source
from benchmarks.conditions import BESIDE, PLUGIN, STOCK, STOCK_NAME, Condition
from benchmarks.settings import SERVED_MODEL_NAME, memory_share
from vllm_litelvlm.errors import OptionsError

#: Tokens of a prompt without its image, and more than any has.
_TEXT_TOKENS = 128


@dataclass(frozen=True)
class Front:
    """How a server's front end runs. ``renderer_workers`` are threads; None: vLLM's default."""

    api_servers: int
    renderer_workers: int | None = None

    def __str__(self) -> str:
        servers = f"{self.api_servers} API server{'s' if self.api_servers > 1 else ''}"
        workers = self.renderer_workers
        return servers if workers is None else f"{servers}, {workers} renderer workers"

    @property
    def arguments(self) -> list[str]:
        """Of ``vllm serve``."""
        arguments = [f"--api-server-count={self.api_servers}"]
        if self.renderer_workers is not None:
            arguments.append(f"--renderer-num-workers={self.renderer_workers}")
        return arguments


@dataclass(frozen=True)
class Settings:
    """What is measured. ``texts`` are asked about each image; ``requests`` is per block.

    A block during which other processes kept more than ``most_other_load`` cores busy is measured
    again.
    """

    source: Source
    visual_tokens: int
    fronts: tuple[Front, ...]
    texts: tuple[int, ...]
    methods: tuple[str, ...]
    budget: int
    requests: int
    rounds: int
    clients: int
    client_processes: int
    output_tokens: int
    kv_cache_gb: float
    seed: int
    output: Path
    beside: Beside | None = None
    most_other_load: float | None = None
    extra_arguments: tuple[str, ...] = ()

    def check_budget(self) -> None:
        """Raise OptionsError where an image has fewer tokens."""
        if self.budget > self.visual_tokens:
            raise OptionsError(
                f"--budget {self.budget} is too many: an image of this model has "
                f"{self.visual_tokens} visual tokens."
            )

    @property
    def conditions(self) -> list[Condition]:
        """Stock vLLM first, then every method, here and in the other checkout where it has it."""
        found = [Condition(STOCK_NAME, STOCK)]
        for method in self.methods:
            options = {"method": method, "budget": self.budget}
            found.append(Condition(method, PLUGIN, options))
            if self.beside and method in self.beside.methods:
                found.append(Condition(beside_name(method), BESIDE, options))
        return found

    @property
    def servers(self) -> list[str]:
        return list(dict.fromkeys(condition.server for condition in self.conditions))

    def server_arguments(self, front: Front) -> list[str]:
        """What all servers get; the user's come last and win."""
        longest = self.visual_tokens + _TEXT_TOKENS + self.output_tokens
        # So much memory has to be free when a server starts.
        share = memory_share(len(self.servers))
        gpu = torch.cuda.is_available()
        return [
            f"--served-model-name={SERVED_MODEL_NAME}",
            "--dtype=bfloat16",
            f"--max-model-len={256 * math.ceil(longest / 256)}",
            f"--load-format={self.source.load_format}",
            f"--kv-cache-memory-bytes={int(self.kv_cache_gb * 2**30)}",
            "--distributed-executor-backend=mp",  # the worker apart from the engine core
            f"--gpu-memory-utilization={share}" if gpu else "--enforce-eager",
            *front.arguments,
            *self.extra_arguments,
        ]

    def server_environment(self, server: str) -> dict[str, str]:
        """Further variables of a server; on a CPU the model gets one thread, unless told."""
        variables = {"VLLM_PLUGINS": "" if server == STOCK else PLUGIN}
        if server == BESIDE:
            assert self.beside is not None
            variables |= self.beside.environment
        if not torch.cuda.is_available():
            one_thread = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            variables |= {name: os.environ.get(name, value) for name, value in one_thread.items()}
            # It outdoes the argument, and takes whole GiB only.
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(self.kv_cache_gb))
        return variables

    def server_options(self, server: str) -> dict[str, Any] | None:
        """The plugin's options of a server that has the plugin."""
        return None if server == STOCK else {}


def beside_name(method: str) -> str:
    """What a method is called that the other checkout runs."""
    return f"{method}, beside"
