"""DivPrune: tokens as far apart as possible."""

from typing import ClassVar

import torch
from torch import nn

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.ranking import raster


class DivPrune(Pruner):
    """DivPrune (Alvar et al., CVPR 2025; github.com/vbdi/divprune).

    Greedy solution of the max-min diversity problem on cosine distances between projected tokens:
    first the token whose nearest neighbour is farthest, then again and again the one that is
    farthest from all chosen. Raster order.

    It looks at tokens behind the projector, which therefore runs on all of them, and once more on
    the kept ones.
    """

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "DivPrune (CVPR 2025)"

    @property
    def needs(self) -> frozenset[Signal]:
        """Projected tokens."""
        return frozenset({Signal.FEATURES, Signal.PROJECTED})

    def select(self, signals: Signals, budget: int) -> Selection:
        """One token a step."""
        unit = nn.functional.normalize(signals[Signal.PROJECTED], dim=-1)
        distance = 1 - unit @ unit.transpose(1, 2)
        images = torch.arange(signals.images, device=signals.device)
        itself = torch.eye(signals.patches, dtype=torch.bool, device=signals.device)
        newest = distance.masked_fill(itself, torch.inf).amin(dim=-1).argmax(dim=-1)
        chosen = [newest]
        gap = torch.full_like(distance[:, 0], torch.inf)  # to the nearest chosen token
        for _ in range(budget - 1):
            gap = torch.minimum(gap, distance[images, newest])
            gap = gap.scatter(1, newest[:, None], -torch.inf)
            newest = gap.argmax(dim=-1)
            chosen.append(newest)
        return keep(signals, raster(torch.stack(chosen, dim=1)))
