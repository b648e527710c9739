"""CDPruner: tokens that are diverse, and relevant to the text."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.ranking import raster

#: Below this gain nothing but rounding errors is left of the kernel.
_NO_GAIN = 1e-5


class CDPruner(Pruner):
    """CDPruner (Zhang et al., NeurIPS 2025; github.com/Theia-4869/CDPruner).

    A determinantal point process whose kernel is the cosine similarity of projected tokens,
    scaled on both sides by their relevance: the negated cosine to the text in CLIP's space (mean
    over texts), stretched over the image to (0, 1]. Tokens are taken greedily by the largest gain
    in the determinant. Raster order.

    The official code stretches over a whole batch, and splits a text that is longer than what
    CLIP reads; here every image is stretched by itself, and such a text is cut as for the other
    methods. Once the kernel's rank is used up, tokens are taken by relevance. Without a text all
    are equally relevant. As for DivPrune, the projector runs on all tokens.
    """

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "CDPruner (NeurIPS 2025)"
    reads_text: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Signal]:
        """Projected tokens, and their cosine to the texts."""
        return frozenset({Signal.FEATURES, Signal.PROJECTED, Signal.COSINE})

    def select(self, signals: Signals, budget: int) -> Selection:
        """Greedy maximum a posteriori inference (Chen et al., 2018), one token a step."""
        unit = nn.functional.normalize(signals[Signal.PROJECTED], dim=-1)
        relevance = self._relevance(signals)
        kernel = relevance[:, :, None] * (unit @ unit.transpose(1, 2)) * relevance[:, None]
        images = torch.arange(signals.images, device=signals.device)
        gain = relevance.square()  # the kernel's diagonal
        # Rows of the kernel's Cholesky factor, one for each chosen token.
        factor = kernel.new_zeros(signals.images, budget, signals.patches)
        taken = torch.zeros_like(gain, dtype=torch.bool)
        chosen = []
        for step in range(budget):
            key = torch.where(gain > _NO_GAIN, gain, relevance - 2)  # gains before leftovers
            newest = key.masked_fill(taken, -torch.inf).argmax(dim=-1)
            chosen.append(newest)
            taken = taken.scatter(1, newest[:, None], True)
            own = gain[images, newest][:, None]
            before = factor[:, :step]
            shared = (before[images, :, newest][:, None] @ before).squeeze(1)
            row = (kernel[images, newest] - shared) / own.clamp(min=_NO_GAIN).sqrt()
            factor[:, step] = torch.where(own > _NO_GAIN, row, 0.0)
            gain = gain - factor[:, step].square()
        kept = raster(torch.stack(chosen, dim=1))
        return keep(signals, kept, signals.text_mask.any(dim=1).expand_as(kept))

    @staticmethod
    def _relevance(signals: Signals) -> Tensor:
        """From just above 0 to 1 over each image, float32 [images, patches]."""
        own = signals.text_mask
        cosine = signals[Signal.COSINE].masked_fill(~own, 0)
        raw = -cosine.sum(dim=1) / own.sum(dim=1).clamp(min=1)
        lowest = raw.amin(dim=-1, keepdim=True)
        spread = (raw.amax(dim=-1, keepdim=True) - lowest).clamp(min=1e-6)
        return (raw - lowest + 1e-6) / spread
