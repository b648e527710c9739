"""SCOPE: salient tokens that cover all others."""

from typing import ClassVar

from pydantic import Field

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.facility import most_covering
from vllm_litelvlm.pruning.likeness import mirrored_cosines
from vllm_litelvlm.pruning.ranking import raster


class Scope(Pruner):
    """SCOPE (Deng et al., NeurIPS 2025; github.com/kinredon/SCOPE).

    Facility location: a token's gain is the sum, over all patches, of how much more similar
    (cosine of features) that patch is to it than to any token chosen so far, times the attention
    of [CLS] to the token in the feature layer to the power ``alpha``. One token a step, raster
    order.

    The official code adds the heads' attention up; here it is their mean, which changes no choice.
    """

    name: ClassVar[str] = "scope"
    paper: ClassVar[str] = "SCOPE (NeurIPS 2025)"

    alpha: float = Field(
        1, ge=0, le=10, description="a number from 0 to 10: the power of the attention of [CLS]"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The feature layer's attention of [CLS]."""
        return frozenset({Signal.FEATURES, Signal.CLS_ATTENTION})

    def select(self, signals: Signals, budget: int) -> Selection:
        """By attention and coverage."""
        worth = signals[Signal.CLS_ATTENTION] ** self.alpha
        likeness = mirrored_cosines(signals.patch_tokens)
        return keep(signals, raster(most_covering(likeness, budget, worth)))
