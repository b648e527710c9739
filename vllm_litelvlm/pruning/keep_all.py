"""No pruning: the yardstick of every table."""

from typing import ClassVar

import torch

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep


class KeepAll(Pruner):
    """Every patch token stays, whatever the budget; bit-identical to vLLM without the plugin."""

    name: ClassVar[str] = "keep-all"
    paper: ClassVar[str] = "none"

    @property
    def needs(self) -> frozenset[Signal]:
        """Nothing but the tokens themselves."""
        return frozenset({Signal.FEATURES})

    def select(self, signals: Signals, budget: int) -> Selection:
        """Every index; the caller passes the number of patches as the budget."""
        everything = torch.arange(signals.patches, device=signals.device)
        return keep(signals, everything.expand(signals.images, -1))
