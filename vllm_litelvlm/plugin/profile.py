"""The costliest batch that a server allows, for vLLM's memory profile."""

from typing import ClassVar

import torch

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.registry import build_pruner


class Profile(Pruner):
    """Runs every method that requests may name, as a step of mixed requests does.

    All their signals are computed together and the methods run one after another, so the step
    needs as much memory as any. No request can name it.
    """

    name: ClassVar[str] = "profile"
    paper: ClassVar[str] = "none"
    reads_text: ClassVar[bool] = True

    methods: list[str]

    @property
    def _pruners(self) -> list[Pruner]:
        return [build_pruner(method, {}) for method in self.methods]

    @property
    def needs(self) -> frozenset[Signal]:
        """Whatever any of the methods reads, and the tokens themselves."""
        return frozenset({Signal.FEATURES}).union(*(pruner.needs for pruner in self._pruners))

    def select(self, signals: Signals, budget: int) -> Selection:
        """Run every method, and keep the first tokens."""
        for pruner in self._pruners:
            pruner.select(signals, budget)
        first = torch.arange(budget, device=signals.device)
        return keep(signals, first.expand(signals.images, -1))
