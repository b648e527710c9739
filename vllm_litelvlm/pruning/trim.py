"""TRIM: the tokens that fit the text, and one mean of the rest."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, append, keep
from vllm_litelvlm.pruning.ranking import highest, raster


class Trim(Pruner):
    """TRIM (Song et al., COLING 2025; github.com/FreedomIntelligence/TRIM).

    The score is the softmax over patches of Eq. 4's similarity. The ``budget - 1`` highest stay in
    raster order, and one token more is the mean of all that were dropped; it follows the image.

    ``direction="high"`` is what the papers describe and report. The official code negates the
    similarity first, and so keeps the lowest: ``direction="low"``.

    Deviations: TRIM is defined for one text; with several the mean of their softmax scores
    decides. Its automatic count (the outliers of the scores) is not offered, since the number of
    tokens has to be known before the image is seen.
    """

    name: ClassVar[str] = "trim"
    paper: ClassVar[str] = "TRIM (COLING 2025)"
    reads_text: ClassVar[bool] = True
    requires_text: ClassVar[bool] = True

    direction: Literal["high", "low"] = Field(
        "high",
        description='"high" (keep the most similar, as the papers say) or "low" (official code)',
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """Similarity."""
        return frozenset({Signal.FEATURES, Signal.SIMILARITY})

    def places(self, patches: int) -> range:
        """The patches, and behind them the mean of the dropped ones."""
        return range(patches + 1)

    def select(self, signals: Signals, budget: int) -> Selection:
        """The kept tokens, then the mean of the others."""
        kept = raster(highest(self._score(signals), budget - 1))
        share = 1 / (signals.patches - kept.shape[1])
        weights = torch.full((signals.images, signals.patches), share, device=signals.device)
        weights.scatter_(1, kept, 0.0)
        patches = signals.patch_tokens
        rest = (weights[:, None] @ patches.float()).to(patches.dtype)
        chosen = keep(signals, kept, torch.ones_like(kept, dtype=torch.bool))
        return append(chosen, rest, place=signals.patches)

    def _score(self, signals: Signals) -> Tensor:
        """Logarithm of the sum over an image's own texts, float32 [images, patches]."""
        similarity = signals[Signal.SIMILARITY]
        scores = (similarity if self.direction == "high" else -similarity).log_softmax(dim=-1)
        return signals.own_texts(scores, -torch.inf).logsumexp(dim=1)
