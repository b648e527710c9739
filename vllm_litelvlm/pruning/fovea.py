"""Fovea: tokens spread over the whole image, and dense where the text and [CLS] point."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.farthest import farthest_in_planes, farthest_points
from vllm_litelvlm.pruning.ranking import membership, raster


class Fovea(Pruner):
    """This package's own method: weighted farthest-point sampling in the image plane.

    With v and c the text score and the context score (Eq. 5 of LiteLVLM), each brought to 0 to 1
    over the image, a patch weighs

        w = 1 + text * v + context * c.

    The first token is the heaviest patch; then, again and again, the one with the highest w * d²,
    where d is its distance to the nearest token so far, in patches. Ties go to the lower patch
    index. Raster order. Of an image in several planes (an overview and tiles), those of others are
    as far away as none, and 0 to 1 goes over all of them.

    The text score is the one of LiteLVLM (``guidance``, and the wanted end: ``direction``); of
    several texts the one that wants a patch most decides. v is 0 without a text, and a score that
    is the same everywhere counts for nothing. Every token is chosen by all three terms; those
    whose v is above its mean over the image are called guided, none without a text or where its
    weight is 0.

    In two layers, the base is chosen with ``text = 0``, and the focus goes on from it with
    ``text = focus_text``.
    """

    name: ClassVar[str] = "fovea"
    paper: ClassVar[str] = "this package's own"
    reads_text: ClassVar[bool] = True
    layered: ClassVar[bool] = True

    text: float = Field(8, ge=0, le=1000, description="a number from 0 to 1000: the text's weight")
    context: float = Field(
        4, ge=0, le=1000, description="a number from 0 to 1000: the context score's weight"
    )
    guidance: Literal["value", "similarity"] = Field(
        "value", description='"value" (on the last layer\'s value path) or "similarity" (Eq. 4)'
    )
    direction: Literal["low", "high"] | None = Field(
        None,
        description='"low", "high", or null: "high" for guidance "value", "low" for "similarity"',
    )
    focus_text: float = Field(
        32,
        ge=0,
        le=1000,
        description="a number from 0 to 1000: the text's weight where it chooses a focus",
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The guidance's text score, and the context score."""
        return frozenset({Signal.FEATURES, self._text_signal, Signal.CONTEXT})

    @property
    def _text_signal(self) -> Signal:
        return Signal.VALUE if self.guidance == "value" else Signal.SIMILARITY

    def select(self, signals: Signals, budget: int) -> Selection:
        """All tokens at once."""
        return self._guided(signals, self.text, budget)

    def choose_base(self, signals: Signals, budget: int) -> Tensor:
        """By context alone."""
        weights = 1 + self.context * _from_0_to_1(signals[Signal.CONTEXT])
        chosen = farthest_points(weights, signals.columns, budget)
        return membership(chosen, signals.patches)

    def choose_focus(self, signals: Signals, base: Tensor, budget: int) -> Selection:
        """On from the base."""
        return self._guided(signals, self.focus_text, budget, base)

    def _guided(
        self, signals: Signals, text: float, budget: int, base: Tensor | None = None
    ) -> Selection:
        context, wanted = _from_0_to_1(
            torch.stack([signals[Signal.CONTEXT], self._wanted(signals)], dim=1)
        ).unbind(dim=1)
        by_text = text * wanted
        weights = 1 + self.context * context + by_text
        if signals.points is None:
            chosen = farthest_points(weights, signals.columns, budget, base)
        else:
            assert base is None, "patches in planes come in one layer"
            chosen = farthest_in_planes(weights, signals.points, budget)
        kept = raster(chosen)
        guided = by_text > by_text.mean(dim=-1, keepdim=True)
        return keep(signals, kept, guided.gather(1, kept))

    def _wanted(self, signals: Signals) -> Tensor:
        """The text score before it is brought to 0 to 1, float32 [images, patches]."""
        scores = signals[self._text_signal]
        if scores.shape[1] == 0:  # no image of the batch has a text
            return scores.new_zeros(signals.images, signals.patches)
        if (self.direction or ("high" if self.guidance == "value" else "low")) == "low":
            scores = -scores
        # Without a text of its own an image is left with -inf everywhere, which is flat.
        own = signals.own_texts(scores, -torch.inf)
        return own[:, 0] if own.shape[1] == 1 else own.amax(dim=1)


def _from_0_to_1(scores: Tensor) -> Tensor:
    """[..., patches] between each row's lowest and highest; 0 where these are the same."""
    low, high = scores.aminmax(dim=-1, keepdim=True)
    return ((scores - low) / (high - low)).nan_to_num(nan=0.0)
