"""The costliest batch that a server allows, for vLLM's memory profile."""

from typing import Any, ClassVar

import torch
from pydantic import Field

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
    #: Options of methods that differ from their own defaults for this model.
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def _pruners(self) -> list[Pruner]:
        return [build_pruner(name, self.parameters.get(name, {})) for name in self.methods]

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
