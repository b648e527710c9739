"""No pruning: the yardstick of every table."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals


class KeepAll(Pruner):
    """Every patch token stays, whatever the budget; bit-identical to vLLM without the plugin."""

    name: ClassVar[str] = "keep-all"
    paper: ClassVar[str] = "none"

    @property
    def needs(self) -> frozenset[Signal]:
        """Nothing."""
        return frozenset()

    def select(self, signals: Signals, budgets: Sequence[int]) -> list[Selection]:
        """Every index; the caller passes the number of patches as the budget."""
        everything = torch.arange(signals.patches, device=signals.device)
        nobody = torch.zeros(signals.patches, dtype=torch.bool, device=signals.device)
        return [Selection(everything, nobody) for _ in budgets]
