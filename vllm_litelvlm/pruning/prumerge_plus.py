"""LLaVA-PruMerge+: PruMerge, with tokens spread over the image added to those it keeps."""

from typing import ClassVar

import torch
from pydantic import Field

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, to_device
from vllm_litelvlm.pruning.prumerge import merge_neighbours
from vllm_litelvlm.pruning.ranking import highest, part, raster


class PruMergePlus(Pruner):
    """LLaVA-PruMerge+ (the same paper and code as PruMerge).

    The most important tokens, then tokens sampled uniformly over the image; both are merged as in
    PruMerge, and the sum of what was pruned follows.

    Deviation: the official code keeps as many important tokens as there are outliers, and adds
    those of an arithmetic sequence of patches (about three for each) that are not among them; how
    many come out depends on the image. Here ``share`` of the kept tokens is important, a quarter
    by default, and the rest stands in the middle of equal steps among the other patches in raster
    order, so that the count is the budget.
    """

    name: ClassVar[str] = "prumerge+"
    paper: ClassVar[str] = "LLaVA-PruMerge+ (ICCV 2025), fixed count"

    share: float = Field(
        0.25, ge=0, le=1, description="a number from 0 to 1: part of the budget by importance"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The last layer's attention of [CLS] and keys."""
        return frozenset({Signal.FEATURES, Signal.LAST_ATTENTION, Signal.LAST_KEYS})

    def places(self, patches: int) -> range:
        """The patches, and behind them the token that sums up the pruned ones."""
        return range(patches + 1)

    def select(self, signals: Signals, budget: int) -> Selection:
        """Important and spread tokens, merged with their neighbours."""
        count = part(budget - 1, self.share)
        spread = budget - 1 - count
        falling = highest(signals[Signal.LAST_ATTENTION], signals.patches)
        important, rest = falling[:, :count], raster(falling[:, count:])
        # The middle of each equal step.
        middles = [(2 * step + 1) * rest.shape[1] // (2 * spread) for step in range(spread)]
        among = rest.index_select(1, to_device(middles, signals.device))
        return merge_neighbours(signals, torch.cat([important, among], dim=1))
