"""HoloV: a quota of tokens for every stretch of the image, and the most attended ones inside."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep, to_device
from vllm_litelvlm.pruning.ranking import highest, raster

#: What the official code adds to a mean variance that it divides by.
_LITTLE = 1e-6


class HoloV(Pruner):
    """HoloV (Zou et al., NeurIPS 2025; github.com/obananas/HoloV).

    The raster sequence is cut into ``crops`` stretches of equal length. A token scores the
    attention of [CLS] to it (feature layer, mean over heads) plus ``variance`` times the variance
    of its cosines to the other tokens of its crop (behind the projector), scaled to the crop's mean
    attention. Crops share the budget by their mean scores, rounded down, and the best ones get one
    token more while there are any; inside a crop the most attended tokens are kept. Raster order.

    Where the last crop is shorter, or a crop is smaller than its share, what is left goes to the
    others, one each and then all to the best; the official code pads with zeros there.
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
        """The attention of [CLS], and projected tokens."""
        return frozenset({Signal.FEATURES, Signal.CLS_ATTENTION, Signal.PROJECTED})

    def select(self, signals: Signals, budget: int) -> Selection:
        """Shares, then the tokens of each crop."""
        length = math.ceil(signals.patches / self.crops)
        crops = math.ceil(signals.patches / length)
        missing = crops * length - signals.patches
        attention, tokens = signals[Signal.CLS_ATTENTION], signals[Signal.PROJECTED]
        if missing:
            attention = nn.functional.pad(attention, (0, missing))
            tokens = nn.functional.pad(tokens, (0, 0, 0, missing))
        attention = attention.unflatten(1, (crops, length))
        sizes = [length] * (crops - 1) + [length - missing]
        scores = self._scores(attention, tokens.unflatten(1, (crops, length)), sizes)
        shares = scores / scores.sum(dim=-1, keepdim=True)
        if missing:
            attention[:, -1, length - missing :] = -1
        falling = torch.sort(attention, dim=-1, descending=True, stable=True).indices
        # A crop's token at this place is within its share (1), one more (0), or further (-1).
        place = torch.arange(length, device=attention.device)
        turn = ((shares * budget).floor()[..., None] - place).clamp(min=-1, max=1)
        turn = turn + shares[..., None]
        if missing:
            turn[:, -1, length - missing :] = -2
        number = torch.arange(0, crops * length, length, device=attention.device)
        patches = (falling + number[:, None]).flatten(1)
        chosen = patches.gather(1, highest(turn.flatten(1), budget))
        return keep(signals, raster(chosen))

    def _scores(self, attention: Tensor, tokens: Tensor, sizes: list[int]) -> Tensor:
        """Mean score of each crop, float32 [images, crops].

        Args:
            attention: float32 [images, crops, length], 0 where a crop is shorter.
            tokens: [images, crops, length, width], 0 where a crop is shorter.
            sizes: the lengths of the crops.
        """
        unit = nn.functional.normalize(tokens.float(), dim=-1)
        cosines = unit @ unit.transpose(-1, -2)
        cosines.diagonal(dim1=-2, dim2=-1).zero_()
        # With n others, m the mean over them, and the token itself as one of cosine 0, as in the
        # official code, its variance is (sum of squares - (n - 1) m^2) / n.
        others = [max(1, size - 1) for size in sizes]
        pairs = [n * size for n, size in zip(others, sizes, strict=True)]
        table = [*(1 / size for size in sizes), *((1 - n) / n**2 for n in others)]
        table += [_LITTLE * number for number in pairs]
        share, of_means, little = to_device(table, tokens.device, torch.float32).chunk(3)
        sums = torch.linalg.vector_norm(cosines.sum(dim=-1), dim=-1)
        squares = torch.linalg.vector_norm(cosines, dim=(-2, -1))
        spread = torch.addcmul(squares * squares, sums * of_means, sums)  # by all pairs
        mean = attention.sum(dim=-1) * share
        return torch.addcmul(mean, mean, spread / (spread + little), value=self.variance)
