"""What referring expressions mean: filters that leave one object of a scene.

A filter gives nothing where what it says is in doubt or idle, so that a meaning that leaves one
object leaves it beyond doubt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES, MARGIN, SceneObject, lies

Objects = Sequence[SceneObject]


class Filter(Protocol):
    """One thing that an expression says."""

    def keep(self, candidates: Objects, scene: Objects) -> list[SceneObject]:
        """The candidates of which it is true; none where that is in doubt."""


@dataclass(frozen=True)
class Description:
    """The attributes that are named; None for those that are not."""

    size: str | None = None
    colour: str | None = None
    texture: str | None = None
    shape: str | None = None

    def named(self) -> dict[str, str]:
        """The attributes that are named and their values, in the order of :data:`ATTRIBUTES`."""
        values = {name: getattr(self, name) for name in ATTRIBUTES}
        return {name: value for name, value in values.items() if value is not None}

    def keep(self, candidates: Objects, scene: Objects) -> list[SceneObject]:
        """See :meth:`Filter.keep`; never in doubt, and the scene does not matter."""
        named = self.named().items()
        return [
            candidate
            for candidate in candidates
            if all(getattr(candidate, name) == value for name, value in named)
        ]


@dataclass(frozen=True)
class Extreme:
    """The outermost in a direction, by :data:`MARGIN` both in its centre and in its outer edge."""

    direction: str

    def keep(self, candidates: Objects, scene: Objects) -> list[SceneObject]:
        """See :meth:`Filter.keep`."""
        if len(candidates) < 2:
            return []
        first, *others = sorted(candidates, key=lambda one: one.reach(self.direction), reverse=True)
        centre, edge = first.reach(self.direction)
        reaches = [other.reach(self.direction) for other in others]
        leads = all(
            centre - other_centre >= MARGIN and edge - other_edge >= MARGIN
            for other_centre, other_edge in reaches
        )
        return [first] if leads else []


@dataclass(frozen=True)
class Compared:
    """The one of the ``size`` "small" or "large" where the others are of the other size.

    ``pair``: whether it is one of two ("smaller") or of more ("smallest").
    """

    size: str
    pair: bool

    def keep(self, candidates: Objects, scene: Objects) -> list[SceneObject]:
        """See :meth:`Filter.keep`."""
        kept = [candidate for candidate in candidates if candidate.size == self.size]
        told = len(kept) < len(candidates) and self.pair == (len(candidates) == 2)
        return kept if told else []


@dataclass(frozen=True)
class Beside:
    """Those to one side of the only object that ``reference`` describes.

    It is for every candidate beyond doubt whether it is one (:func:`~.objects.lies`).
    """

    direction: str
    reference: Description

    def keep(self, candidates: Objects, scene: Objects) -> list[SceneObject]:
        """See :meth:`Filter.keep`."""
        references = self.reference.keep(scene, scene)
        if len(references) != 1:
            return []
        others = [candidate for candidate in candidates if candidate != references[0]]
        lying = [lies(other, self.direction, references[0]) for other in others]
        if None in lying:
            return []
        kept = [other for other, is_there in zip(others, lying, strict=True) if is_there]
        return kept if len(kept) < len(candidates) else []


#: A description, and what narrows it down.
Meaning = tuple[Description, *tuple[Filter, ...]]


def left_by(meaning: Sequence[Filter], scene: Objects) -> list[SceneObject]:
    """The objects that all filters leave, one filter after the other."""
    candidates = list(scene)
    for one in meaning:
        candidates = one.keep(candidates, scene)
    return candidates


def means(meaning: Sequence[Filter], target: SceneObject, scene: Objects) -> bool:
    """Whether it is the target, and nothing else, beyond doubt."""
    return left_by(meaning, scene) == [target]
