"""EADP: tokens that cover what the sharpest tokens of the text point at."""

import math
from functools import lru_cache
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep, to_device
from vllm_litelvlm.pruning.facility import most_covering
from vllm_litelvlm.pruning.likeness import mirrored_cosines
from vllm_litelvlm.pruning.planes import distances, points_and_regions
from vllm_litelvlm.pruning.ranking import raster

#: What the official code adds to relevance, so that nothing has none.
_LITTLE = 1e-6
#: A Gaussian of standard deviation 1 beside its middle, where it is 1.
_BESIDE = math.exp(-1 / 2)


class EADP(Pruner):
    """EADP (ECCV 2026, arXiv 2607.02484; github.com/SJTU-DeepVisionLab/EADP).

    Relevance of a patch is half its negated cosine to the text in CLIP's space and half that to the
    sharpest tokens of the text, those whose softmax over patches has the lowest entropy
    (:mod:`vllm_litelvlm.pruning.sharpest`); mean over texts, stretched over the image from 0,
    smoothed by a Gaussian of 3 x 3 patches, and taken to ``power``. A set of tokens covers of every
    patch the highest likeness ((1 + cosine) / 2, behind the projector) that one of them has; one
    token a step is taken by what it adds to the sum weighed by relevance. Raster order.

    The official code takes padding behind a short text for tokens of it; here a text's own tokens
    count alone. It splits a text that is longer than what CLIP reads; here such a text is cut.
    Images that LLaVA-NeXT cuts into tiles are chosen from as a whole, where the official code gives
    each tile a budget by its relevance; as there, each tile has sharpest tokens of its own. Tokens
    point at padding around a picture too. Without a text all is equally relevant.
    """

    name: ClassVar[str] = "eadp"
    paper: ClassVar[str] = "EADP (ECCV 2026)"
    reads_text: ClassVar[bool] = True

    power: float = Field(
        1, ge=0, le=10, description="a number from 0 to 10: the power of a patch's relevance"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """Cosines of the text and its tokens, and projected patches."""
        return frozenset({Signal.FEATURES, Signal.TOKEN_COSINE, Signal.PROJECTED})

    def select(self, signals: Signals, budget: int) -> Selection:
        """By coverage of what is relevant."""
        relevance = self._relevance(signals)[:, None]
        cosines = mirrored_cosines(signals[Signal.PROJECTED])
        likeness = torch.addcmul(relevance, relevance, cosines)  # twice what is said above
        kept = raster(most_covering(likeness, budget))
        return keep(signals, kept, signals.have_text.expand_as(kept))

    def _relevance(self, signals: Signals) -> Tensor:
        """Up to a factor, float32 [images, patches]."""
        cosines = signals[Signal.TOKEN_COSINE]
        if cosines.shape[1] == 0:  # no image of the batch has a text
            return cosines.new_ones(signals.images, signals.patches)
        cosine = signals.own_texts(cosines, 0.0).sum(dim=1)
        highest = cosine.amax(dim=-1, keepdim=True)
        relevance = _smoothed(signals, highest - cosine + _LITTLE)
        if self.power == 1:
            return relevance
        return (relevance / relevance.amax(dim=-1, keepdim=True)) ** self.power


def _smoothed(signals: Signals, scores: Tensor) -> Tensor:
    """By a Gaussian of standard deviation 1 in 3 x 3 patches, float32 [images, patches].

    Beyond the edge a grid is mirrored. Where the patches are no grid, the mean is over those that
    there are.
    """
    rows, columns = signals.patches // signals.columns, signals.columns
    if signals.points is None and rows * columns == signals.patches:
        across = down = to_device(_blur(columns), signals.device, torch.float32)
        if rows != columns:
            down = to_device(_blur(rows), signals.device, torch.float32)
        return (down @ scores.view(-1, rows, columns) @ across.T).flatten(1)
    squares = distances(points_and_regions(signals, 2)[0]).square()
    weights = (squares / -2).exp().masked_fill(squares > 2, 0.0)
    return scores @ (weights / weights.sum(dim=1, keepdim=True)).T


@lru_cache(maxsize=256)
def _blur(length: int) -> list[list[float]]:
    """The weight of each place of a line for each, mirrored beyond the ends."""
    rows = [[0.0] * length for _ in range(length)]
    for place, row in enumerate(rows):
        for there, weight in ((place - 1, _BESIDE), (place, 1.0), (place + 1, _BESIDE)):
            row[min(abs(there), max(0, 2 * (length - 1) - abs(there)))] += weight
    return rows
