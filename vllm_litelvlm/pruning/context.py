"""Context only: LiteLVLM without its guidance."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.score import ScorePruner


class ContextOnly(ScorePruner):
    """The tokens that contribute most to [CLS] (Eq. 5; Table 4, row 1), in raster order."""

    name: ClassVar[str] = "context"
    paper: ClassVar[str] = "LiteLVLM, Table 4 #1"
    variant: Literal["paper", "reference"] = Field(
        "paper",
        description='"paper" (raw queries and keys) or "reference" (each normalised to length 1)',
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The context score in the variant's form."""
        return frozenset({Signal.FEATURES, context_signal(self.variant)})

    def score(self, signals: Signals) -> Tensor:
        """Eq. 5."""
        return signals[context_signal(self.variant)]


def context_signal(variant: str) -> Signal:
    """The form of Eq. 5 that a variant of LiteLVLM reads."""
    return Signal.CONTEXT if variant == "paper" else Signal.CONTEXT_NORMALISED
