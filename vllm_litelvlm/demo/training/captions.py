"""Texts for contrastive training, and of which scenes they are true."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_litelvlm.evaluation.scenes.expressions import refer
from vllm_litelvlm.evaluation.scenes.meanings import Description, Meaning, Objects, left_by
from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES
from vllm_litelvlm.evaluation.scenes.phrases import noun_fields, shuffled

#: How often a caption names each attribute of an object.
_NAMED = 0.75
#: How many objects a caption names at most.
_MOST = 3


@dataclass(frozen=True)
class Text:
    """A text about a scene: true of every scene that has an object of each of its meanings."""

    text: str
    meanings: tuple[Meaning, ...]

    def is_true_of(self, scene: Objects) -> bool:
        """Whether it is true of a scene."""
        return all(left_by(meaning, scene) for meaning in self.meanings)


def expression(scene: Objects, random: np.random.Generator, kinds: Collection[str]) -> Text:
    """A referring expression for one of the objects; a caption of it where none is found."""
    target = scene[int(random.integers(len(scene)))]
    found = refer(target, scene, "train", random, kinds)
    if found is None:
        return caption([target], random)
    return Text(found.text, (found.meaning,))


def caption(scene: Objects, random: np.random.Generator) -> Text:
    """Some of the objects by some of their attributes: "a red star and a small moon"."""
    described = shuffled(random, scene)[: int(random.integers(1, _MOST + 1))]
    parts, meanings = [], []
    for one in described:
        names = [name for name in ATTRIBUTES if random.random() < _NAMED] or ["shape"]
        description = Description(**{name: one.attribute(name) for name in names})
        noun = noun_fields(description, random)["one"]
        parts.append(f"an {noun}" if noun[0] in "aeiou" else f"a {noun}")
        meanings.append((description,))
    return Text(" and ".join(parts), tuple(meanings))


def truths(texts: Sequence[Text], scenes: Sequence[Objects]) -> NDArray[np.bool_]:
    """Which text is true of which scene, bool [scenes, texts]."""
    attributes = _attribute_table(scenes)
    table = np.ones((len(scenes), len(texts)), np.bool_)
    for number, text in enumerate(texts):
        for description, *_ in text.meanings:
            wanted = _values(description)
            fits = ((attributes == wanted) | (wanted < 0)).all(axis=2).any(axis=1)
            table[:, number] &= fits
    narrowed = [any(len(meaning) > 1 for meaning in text.meanings) for text in texts]
    for row, column in np.argwhere(table & np.array(narrowed)):
        table[row, column] = texts[column].is_true_of(scenes[row])
    return table


_CODES = {
    name: {value: code for code, value in enumerate(values)} for name, values in ATTRIBUTES.items()
}


def _attribute_table(scenes: Sequence[Objects]) -> NDArray[np.int8]:
    """Every object's attributes as numbers, int8 [scenes, most objects, 4]; -2 where none is."""
    table = np.full((len(scenes), max(map(len, scenes)), len(ATTRIBUTES)), -2, np.int8)
    for row, scene in enumerate(scenes):
        for place, one in enumerate(scene):
            table[row, place] = attribute_codes([one.attribute(name) for name in ATTRIBUTES])
    return table


def attribute_codes(values: Sequence[str]) -> list[int]:
    """The values of the attributes, in their order, as numbers."""
    return [_CODES[name][value] for name, value in zip(ATTRIBUTES, values, strict=True)]


def _values(description: Description) -> NDArray[np.int8]:
    named = description.named()
    return np.array(
        [_CODES[name][named[name]] if name in named else -1 for name in ATTRIBUTES], np.int8
    )
