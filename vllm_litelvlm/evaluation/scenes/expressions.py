"""Referring expressions: found for an object at random, and checked."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from vllm_litelvlm.evaluation.scenes.meanings import (
    Beside,
    Compared,
    Description,
    Extreme,
    Meaning,
    Objects,
    left_by,
    means,
)
from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES, DIRECTIONS, SceneObject, lies
from vllm_litelvlm.evaluation.scenes.phrases import fill, meaning_fields, pick, shuffled
from vllm_litelvlm.evaluation.scenes.wording import EXPRESSIONS, Split

#: The kinds of expressions, easiest first.
EXPRESSION_KINDS = tuple(EXPRESSIONS)

#: How much sooner than others a kind is tried, which makes up for how seldom it is found.
_EAGERNESS = {"attribute": 1.0, "position": 1.0, "comparison": 5.0, "relation": 2.0}
#: How many meanings are tried before an object is said to have none of a kind.
_TRIES = 6
#: How often a description that is to be narrowed down names each attribute.
_NAMED = {"size": 0.1, "colour": 0.3, "texture": 0.15, "shape": 0.75}
#: How often an attribute expression names no more than it must, and how often a relation compares.
_MINIMAL, _COMPARING = 0.5, 0.4


@dataclass(frozen=True)
class Expression:
    """A text that means one object of a scene.

    ``template`` is the wording that the ``text`` was made from, and ``target`` the object's index.
    """

    text: str
    kind: str
    template: str
    target: int
    meaning: Meaning


def refer(
    target: SceneObject,
    scene: Objects,
    split: Split,
    random: np.random.Generator,
    kinds: Collection[str] = EXPRESSION_KINDS,
    without: Collection[str] = (),
) -> Expression | None:
    """An expression of one of the ``kinds`` in one of the split's wordings; None if none is found.

    ``without`` names attributes of the target that the text may not tell.
    """
    eagerness = {kind: random.random() ** (1 / _EAGERNESS[kind]) for kind in kinds}
    for kind in sorted(eagerness, key=lambda kind: -eagerness[kind]):
        for _ in range(_TRIES):
            meaning = _PROPOSALS[kind](target, scene, random, without)
            if meaning is None:
                break
            if means(meaning, target, scene):
                fields = meaning_fields(meaning, random)
                template, text = fill(EXPRESSIONS[kind][split], fields, random)
                return Expression(text, kind, template, target.index, meaning)
    return None


def identify(
    target: SceneObject,
    scene: Objects,
    random: np.random.Generator,
    without: Collection[str] = (),
    minimal: bool = True,
) -> Description | None:
    """Attributes that together are the target's alone, if there are such.

    With ``minimal``, none of them can be spared.
    """
    found: list[frozenset[str]] = []
    for names in _SUBSETS:
        spare = minimal and any(less < names for less in found)
        if spare or names & set(without):
            continue
        if means([_describe(target, names)], target, scene):
            found.append(names)
    return _describe(target, pick(random, found)) if found else None


def _describe(target: SceneObject, names: Collection[str]) -> Description:
    return Description(**{name: target.attribute(name) for name in names})


def _loosely(
    target: SceneObject, random: np.random.Generator, without: Collection[str]
) -> Description:
    """A description of the target that may be true of others."""
    chances = zip(_NAMED.items(), random.random(len(_NAMED)).tolist(), strict=True)
    names = [name for (name, often), chance in chances if chance < often and name not in without]
    return _describe(target, names)


def _attribute(
    target: SceneObject, scene: Objects, random: np.random.Generator, without: Collection[str]
) -> Meaning | None:
    description = identify(target, scene, random, without, random.random() < _MINIMAL)
    return None if description is None else (description,)


def _position(
    target: SceneObject, scene: Objects, random: np.random.Generator, without: Collection[str]
) -> Meaning | None:
    return _loosely(target, random, without), Extreme(pick(random, DIRECTIONS))


def _comparison(
    target: SceneObject, scene: Objects, random: np.random.Generator, without: Collection[str]
) -> Meaning | None:
    if "size" in without:
        return None
    found = []
    for names in _SUBSETS:
        if "size" not in names and not names & set(without):
            description = _describe(target, names)
            alike = left_by([description], scene)
            compared = Compared(target.size, pair=len(alike) == 2)
            if compared.keep(alike, scene) == [target]:
                found.append((description, compared))
    return pick(random, found) if found else None


def _relation(
    target: SceneObject, scene: Objects, random: np.random.Generator, without: Collection[str]
) -> Meaning | None:
    for other in shuffled(random, scene):
        directions = [direction for direction in DIRECTIONS if lies(target, direction, other)]
        if directions:
            break
    else:
        return None
    direction = pick(random, directions)
    reference = identify(other, scene, random)
    if reference is None:
        return None
    description = _loosely(target, random, without)
    beside = Beside(direction, reference)
    if "size" in without or description.size or random.random() >= _COMPARING:
        return description, beside
    alike = left_by([description, beside], scene)
    if len(alike) < 2:
        return description, beside
    return description, beside, Compared(target.size, pair=len(alike) == 2)


_PROPOSALS: Mapping[
    str,
    Callable[[SceneObject, Objects, np.random.Generator, Collection[str]], Meaning | None],
] = {
    "attribute": _attribute,
    "position": _position,
    "comparison": _comparison,
    "relation": _relation,
}

#: Every choice of attributes, smaller ones first.
_SUBSETS = sorted(
    (
        frozenset(name for place, name in enumerate(ATTRIBUTES) if number >> place & 1)
        for number in range(1, 2 ** len(ATTRIBUTES))
    ),
    key=len,
)
