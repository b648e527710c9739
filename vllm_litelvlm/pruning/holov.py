"""HoloV: a quota of tokens for every stretch of the image, and the most attended ones inside."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.ranking import highest, raster

#: What the official code adds to a mean variance that it divides by.
_LITTLE = 1e-6


class HoloV(Pruner):
    """HoloV (Zou et al., NeurIPS 2025; github.com/obananas/HoloV).

    The raster sequence is cut into ``crops`` stretches of equal length. A token scores the
    attention of [CLS] to it (feature layer, mean over heads) plus ``variance`` times the variance
    of its cosines in its crop (features; 0 to itself), scaled to the crop's mean attention. Crops
    share the budget by their scores, rounded down, and the best ones get one token more while there
    are any; inside a crop the most attended tokens are kept. Raster order.

    The tokens that a shorter last crop lacks have attention and cosines of 0. What a crop is too
    small for goes to the others, one each and then all to the best; the official code pads with
    zeros there. It compares tokens behind the projector, for which that would have to run on all,
    and takes a token's mean cosine over the others and the variance over all. Either way crops
    gain by the variance nearly alike, since the scale takes its size away.
    """

    name: ClassVar[str] = "holov"
    paper: ClassVar[str] = "HoloV (NeurIPS 2025)"

    crops: int = Field(
        16, ge=1, le=1024, description="a whole number from 1 to 1024: stretches of the image"
    )
    variance: float = Field(
        0.09, ge=0, le=1000, description="a number from 0 to 1000: the weight of the variance"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The attention of [CLS]."""
        return frozenset({Signal.FEATURES, Signal.CLS_ATTENTION})

    def select(self, signals: Signals, budget: int) -> Selection:
        """Shares, then the tokens of each crop."""
        length = math.ceil(signals.patches / self.crops)
        crops = math.ceil(signals.patches / length)
        missing = crops * length - signals.patches
        attention, tokens = signals[Signal.CLS_ATTENTION], signals.patch_tokens
        if missing:
            attention = nn.functional.pad(attention, (0, missing))
            tokens = nn.functional.pad(tokens, (0, 0, 0, missing))
        attention = attention.unflatten(1, (crops, length))
        scores = self._scores(attention, tokens.unflatten(1, (crops, length)))
        shares = scores / scores.sum(dim=-1, keepdim=True)
        if missing:
            attention[:, -1, length - missing :] = -1
        falling = torch.sort(attention, dim=-1, descending=True, stable=True).indices
        number = torch.arange(crops * length, device=attention.device).view(crops, length)
        # A crop's token at its place is within the crop's share (1), one more (0), or further (-1).
        turn = ((shares * budget).floor()[..., None] - number[0]).clamp(min=-1, max=1)
        turn = turn + shares[..., None]
        if missing:
            turn[:, -1, length - missing :] = -2
        patches = (falling + number[:, :1]).flatten(1)
        chosen = patches.gather(1, highest(turn.flatten(1), budget))
        kept = raster(chosen)
        return keep(signals, kept)

    def _scores(self, attention: Tensor, tokens: Tensor) -> Tensor:
        """Of each crop, float32 [images, crops].

        Args:
            attention: float32 [images, crops, length].
            tokens: [images, crops, length, width].
        """
        unit = nn.functional.normalize(tokens.float(), dim=-1)
        cosines = unit @ unit.transpose(-1, -2)
        cosines.diagonal(dim1=-2, dim2=-1).zero_()
        several = tokens.shape[2] > 1
        spread = cosines.var(dim=-1, correction=int(several)).mean(dim=-1)
        attended = attention.sum(dim=-1)
        return torch.addcmul(attended, attended, spread / (spread + _LITTLE), value=self.variance)
