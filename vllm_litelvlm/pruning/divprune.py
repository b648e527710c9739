"""DivPrune: tokens as far apart as possible."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.centred import CENTRED, centred, rarity
from vllm_litelvlm.pruning.greedy import choose_one_by_one
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

    ``centred`` (Cen-Prune, 2026): of tokens less their mean, each distance weighed by how rare the
    token is; the first is the rarest.
    """

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "DivPrune (CVPR 2025)"

    centred: bool = Field(False, description=CENTRED)

    @property
    def needs(self) -> frozenset[Signal]:
        """Projected tokens."""
        return frozenset({Signal.FEATURES, Signal.PROJECTED})

    def select(self, signals: Signals, budget: int) -> Selection:
        """One token a step."""
        tokens = signals[Signal.PROJECTED]
        if self.centred:
            tokens = centred(tokens)
        likeness = mirrored_cosines(tokens)
        if self.centred:
            weights = rarity(tokens)
            first = weights.argmax(dim=-1)
        else:
            weights = torch.ones_like(likeness[:, 0])
            likeness.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            first = (1 - likeness.amax(dim=-1)).argmax(dim=-1)
        if kernels_take(likeness):
            from vllm_litelvlm.pruning.kernels.diversity import choose_in_one_launch

            chosen = choose_in_one_launch(likeness, weights, first, budget)
        else:
            chosen = most_diverse(likeness, weights, first, budget)
        return keep(signals, raster(chosen))


def most_diverse(likeness: Tensor, weights: Tensor, first: Tensor, count: int) -> Tensor:
    """One token of every image a step, by weight and distance to the nearest one chosen.

    Args:
        likeness: cosines, float32 [images, patches, patches].
        weights: at least 0, float32 [images, patches].
        first: the first choice, int64 [images].
        count: how many to choose.

    Returns:
        Tokens in the order of their choice, int64 [images, count].
    """
    images = torch.arange(len(likeness), device=likeness.device)
    gap = torch.full_like(weights, torch.inf)  # to the nearest chosen token

    def scores(newest: Tensor | None) -> Tensor:
        if newest is None:
            return torch.zeros_like(weights).scatter_(1, first[:, None], 1.0)
        torch.minimum(gap, 1 - likeness[images, newest], out=gap)
        return weights * gap

    return choose_one_by_one(scores, count)
