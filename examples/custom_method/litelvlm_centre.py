"""A pruning method of one's own: keep the patches nearest to a point of the image.

    pip install ./examples/custom_method
    vllm serve llava-hf/llava-1.5-7b-hf --plugin litelvlm

Requests then name it: ``{"method": "centre", "budget": 64, "x": 0.25}``.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.score import ScorePruner


class Centre(ScorePruner):
    """The tokens of the patches nearest to (``x``, ``y``), whatever they show."""

    name: ClassVar[str] = "centre"
    paper: ClassVar[str] = "none"
    x: float = Field(0.5, ge=0, le=1, description="a number from 0 (left) to 1 (right)")
    y: float = Field(0.5, ge=0, le=1, description="a number from 0 (top) to 1 (bottom)")

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.FEATURES})

    def score(self, signals: Signals) -> Tensor:
        side = int(signals.patches**0.5)
        middles = (torch.arange(side, device=signals.device) + 0.5) / side
        distance = (middles[:, None] - self.y) ** 2 + (middles - self.x) ** 2
        return -distance.flatten().expand(signals.images, -1)
