"""Attention of [CLS]: what text-blind methods go by."""

from typing import ClassVar

from torch import Tensor

from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.score import ScorePruner


class ClsAttention(ScorePruner):
    """The tokens that [CLS] attends to most, mean over heads, in raster order.

    The attention is that of the feature layer, the last which the tower runs (22 of CLIP-L's 24,
    counted from 0), as in VisionZip and VisPruner.
    """

    name: ClassVar[str] = "cls-attention"
    paper: ClassVar[str] = "the importance of VisionZip and VisPruner"

    @property
    def needs(self) -> frozenset[Signal]:
        """The attention of [CLS]."""
        return frozenset({Signal.FEATURES, Signal.CLS_ATTENTION})

    def score(self, signals: Signals) -> Tensor:
        """Attention probabilities, mean over heads."""
        return signals[Signal.CLS_ATTENTION]
