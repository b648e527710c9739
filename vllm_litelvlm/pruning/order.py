"""What is asked for one image, or for one of the two layers in which its tokens come."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from vllm_litelvlm.pruning.base import TEXT_SIGNALS, Pruner, Signal
from vllm_litelvlm.pruning.window import Window


class Layer(StrEnum):
    """Which part of an image's tokens is asked for."""

    #: All of them, chosen at once.
    WHOLE = "whole"
    #: Those that stay whatever is asked about the image.
    BASE = "base"
    #: Those that a text adds to a base.
    FOCUS = "focus"


@dataclass(frozen=True)
class Order:
    """``budget`` tokens of one layer, by one method.

    ``base`` is how many tokens the base has, of that layer itself or below a focus. ``window``: the
    patches that may be kept; None for all.
    """

    pruner: Pruner
    budget: int
    layer: Layer = Layer.WHOLE
    base: int = 0
    window: Window | None = None

    @property
    def needs(self) -> frozenset[Signal]:
        """The signals that the choice reads; a base reads no text."""
        needs = self.pruner.needs
        return needs - TEXT_SIGNALS if self.layer is Layer.BASE else needs

    @cached_property
    def base_key(self) -> tuple[str, str, int, Window | None]:
        """Equal for all that have a base in common."""
        return self.pruner.name, self.pruner.model_dump_json(), self.base, self.window

    @property
    def count(self) -> int:
        """How many tokens come out."""
        return self.pruner.output_count(self.budget)
