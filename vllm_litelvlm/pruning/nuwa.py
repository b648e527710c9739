"""Nüwa: attended tokens of every region, into which those around them are merged."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, take
from vllm_litelvlm.pruning.planes import distances, points_and_regions
from vllm_litelvlm.pruning.ranking import highest

#: The side of a region, in patches.
_SIDE = 2
#: Less than a place among those kept, and less than any cosine that counts.
_ROUNDING, _LITTLE = 1e-9, 1e-9


class Nuwa(Pruner):
    """Nüwa (ICLR 2026; github.com/Man-PaperRejected/Nuwa), its first stage.

    Of every region of 2 x 2 patches the tokens that [CLS] attends to most (feature layer) are
    candidates, as few a region as give the budget; of all candidates the most attended are kept.
    Those of them above the quantile ``untouched`` of their attention stay as they are. To each
    other one the mean of the patches around it is added, weighted by their cosine to it, if that
    is above 0, times 1 - d / ``reach``, where d is the distance in patches; its own weight counts
    in the mean's divisor. Raster order. Images in several planes (an overview and tiles) have
    regions and distances within each.

    The second stage prunes inside the language model, which paged attention does not allow: here
    the first one has the whole budget. The official cosines are of a mean of hidden states, the
    last of which LLaVA does not compute; here they are of the features.
    """

    name: ClassVar[str] = "nuwa"
    paper: ClassVar[str] = "Nüwa (ICLR 2026)"

    untouched: float = Field(
        0.55, ge=0, le=1, description="a number from 0 to 1: from which quantile tokens stay"
    )
    reach: float = Field(
        math.sqrt(280), gt=0, le=1000, description="a number above 0, to 1000: in patches"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The attention of [CLS]."""
        return frozenset({Signal.FEATURES, Signal.CLS_ATTENTION})

    def select(self, signals: Signals, budget: int) -> Selection:
        """Candidates, the most attended of them, and what is around."""
        attention = signals[Signal.CLS_ATTENTION]
        points, region = points_and_regions(signals, _SIDE)
        each = math.ceil(budget * _SIDE**2 / signals.patches)
        higher = (attention[:, None] > attention[:, :, None]) & (region == region.T)
        no_candidate = higher.sum(dim=-1) >= each
        falling = highest(attention.add(no_candidate, alpha=-2), budget)
        kept, place = torch.sort(falling, dim=-1)
        stays = place < budget - math.ceil(self.untouched * (budget - 1) - _ROUNDING)

        tokens = signals.patch_tokens.float()
        unit = nn.functional.normalize(tokens, dim=-1)
        weights = (take(unit, kept) @ unit.transpose(1, 2)).clamp(min=_LITTLE)
        weights *= self._nearness(points)[kept]
        weights /= weights.sum(dim=-1, keepdim=True)
        weights.masked_fill_(stays[:, :, None], 0.0)
        weights.scatter_(2, kept[:, :, None], 1.0)
        nobody = torch.zeros_like(kept, dtype=torch.bool)
        return Selection((weights @ tokens).to(signals.patch_tokens.dtype), kept, nobody)

    def _nearness(self, points: Tensor) -> Tensor:
        """From 1 at a patch to 0 at ``reach`` and beyond, float32 [patches, patches]."""
        return torch.add(1, distances(points), alpha=-1 / self.reach).clamp(min=0)
