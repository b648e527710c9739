"""DivPrune: tokens as far apart as possible."""

from typing import ClassVar

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.kernels import kernels_take
from vllm_litelvlm.pruning.likeness import mirrored_cosines
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
        likeness = mirrored_cosines(signals[Signal.PROJECTED])
        likeness.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        first = (1 - likeness.amax(dim=-1)).argmax(dim=-1)
        if kernels_take(likeness):
            from vllm_litelvlm.pruning.kernels.diversity import choose_in_one_launch

            chosen = choose_in_one_launch(likeness, first, budget)
        else:
            chosen = choose_one_by_one(likeness, first, budget)
        return keep(signals, raster(chosen))


def choose_one_by_one(likeness: Tensor, first: Tensor, count: int) -> Tensor:
    """One token of every image a step, the one farthest from all chosen.

    Args:
        likeness: cosines, float32 [images, patches, patches].
        first: the first choice, int64 [images].
        count: how many to choose.

    Returns:
        Tokens in the order of their choice, int64 [images, count].
    """
    images = torch.arange(len(likeness), device=likeness.device)
    newest, chosen = first, [first]
    gap = torch.full_like(likeness[:, 0], torch.inf)  # to the nearest chosen token
    for _ in range(count - 1):
        gap = torch.minimum(gap, 1 - likeness[images, newest])
        gap.scatter_(1, newest[:, None], -torch.inf)
        newest = gap.argmax(dim=-1)
        chosen.append(newest)
    return torch.stack(chosen, dim=1)
