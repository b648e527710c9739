"""What a model offers to methods, and what its images are like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from vllm_litelvlm.pruning.base import Pruner, Signal


@dataclass(frozen=True)
class Traits:
    """Of a model, as far as they decide what its users may ask for.

    ``family`` names it in sentences. ``signals`` are those that its guidance computes. ``tokens``
    is what every image comes to, None where that follows from the image's size. ``layered``:
    whether an image may come in two layers. ``crops``: whether pictures are cut to a square, so
    that ``frame`` means something. ``parameters``: options of methods that stand for the methods'
    own defaults, such as those that would read a signal that is not there. ``side``: how many
    patches long a side of the square is, where a last part of one is left out; None where that is
    the root of ``tokens``. ``has_cls``: whether the tower has a [CLS].
    """

    family: str
    signals: frozenset[Signal] = frozenset(Signal)
    tokens: int | None = None
    layered: bool = True
    crops: bool = True
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    side: Fraction | None = None
    has_cls: bool = True

    def places(self, pruner: Pruner, patches: int) -> range:
        """Those of :meth:`Pruner.places` that there are; an absent [CLS] has none."""
        places = pruner.places(patches)
        return places if self.has_cls else range(max(0, places.start), places.stop)


#: Of a model that can do whatever there is.
ANY = Traits("all")
