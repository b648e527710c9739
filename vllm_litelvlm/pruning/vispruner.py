"""VisPruner: the tokens that [CLS] attends to, and a diverse part of the rest."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.kernels import kernels_take
from vllm_litelvlm.pruning.likeness import cosines
from vllm_litelvlm.pruning.ranking import highest, raster

#: Tokens dropped in one round of matching.
_AT_ONCE = 8


class VisPruner(Pruner):
    """VisPruner (Zhang et al., ICCV 2025; github.com/Theia-4869/VisPruner).

    ``share`` of the budget, rounded down, goes to the tokens that [CLS] attends to most in the
    feature layer. The others, by falling attention, are thinned out until the rest of the budget
    is left: in each round those at even places are compared with those at odd places (cosine of
    features), and the at most 8 even ones that are most similar to some odd one go; the even ones
    that stay come first in the next round, by falling similarity. Raster order, no merging.

    The official code fails on an odd number of remaining tokens; here the even side then has one
    more. A near tie of two likenesses, which a GPU may round otherwise than a CPU, changes the
    places of all later rounds.
    """

    name: ClassVar[str] = "vispruner"
    paper: ClassVar[str] = "VisPruner (ICCV 2025)"

    share: float = Field(
        0.5, ge=0, le=1, description="a number from 0 to 1: part of the budget by attention"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The feature layer's attention of [CLS]."""
        return frozenset({Signal.FEATURES, Signal.CLS_ATTENTION})

    def select(self, signals: Signals, budget: int) -> Selection:
        """Important tokens, then what the matching leaves."""
        ranked = highest(signals[Signal.CLS_ATTENTION], signals.patches)
        important = int(budget * self.share)
        kept = ranked[:, :important]
        if budget > important:
            rest = _thin_out(signals.patch_tokens, ranked[:, important:], budget - important)
            kept = torch.cat([kept, rest], dim=1)
        return keep(signals, raster(kept))


def _thin_out(patches: Tensor, rest: Tensor, count: int) -> Tensor:
    """Drop from ``rest``, int64 [images, tokens], until ``count`` (at least 1) are left."""
    likeness = cosines(patches)  # once, since every round compares the same tokens
    if kernels_take(likeness):
        from vllm_litelvlm.pruning.kernels.thinning import thin_out_in_one_launch

        return thin_out_in_one_launch(likeness, rest, count, _AT_ONCE)
    return thin_out_round_by_round(likeness, rest, count)


def thin_out_round_by_round(likeness: Tensor, rest: Tensor, count: int) -> Tensor:
    """What is left of ``rest``, in the order of the last round, int64 [images, count].

    ``likeness``: cosines of all patches, float32 [images, patches, patches].
    """
    images = torch.arange(len(rest), device=rest.device)[:, None, None]
    while rest.shape[1] > count:
        even, odd = rest[:, ::2], rest[:, 1::2]
        dropped = min(_AT_ONCE, rest.shape[1] - count, even.shape[1])
        closest = likeness[images, even[:, :, None], odd[:, None]].amax(dim=-1)
        stay = even.gather(1, highest(closest, even.shape[1])[:, dropped:])
        rest = torch.cat([stay, odd], dim=1)
    return rest
