"""Questions about a scene, and what is right."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from vllm_litelvlm.evaluation.samples import Box
from vllm_litelvlm.evaluation.scenes.expressions import EXPRESSION_KINDS, Expression, refer
from vllm_litelvlm.evaluation.scenes.meanings import Description, Objects
from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES, DIRECTIONS, OPPOSITE, lies
from vllm_litelvlm.evaluation.scenes.phrases import (
    direction_fields,
    fill,
    noun_fields,
    pick,
    shuffled,
)
from vllm_litelvlm.evaluation.scenes.wording import ANSWER_FORMS, QUESTIONS, Split

#: The kinds of questions; the first four ask for an attribute of an object.
QUESTION_KINDS = (*ATTRIBUTES, "count", "presence", "relation", "box")

#: How many objects are tried before a kind of question is given up.
_TRIES = 8


@dataclass(frozen=True)
class SceneQuestion:
    """A question of one of the :data:`QUESTION_KINDS`.

    ``template`` is the wording of its question, to which ``prompt`` adds a line on the form of the
    answer. ``texts`` are what it says of objects, word for word, and ``expressions`` those of them
    that mean one object; the question is about the objects ``targets``, by index. Right is
    ``answer``, or ``box`` for the kind "box".
    """

    kind: str
    template: str
    prompt: str
    texts: tuple[str, ...]
    expressions: tuple[Expression, ...]
    targets: tuple[int, ...]
    answer: str | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Asker:
    """Asks about one scene, in one split's wordings, with what ``random`` brings.

    ``expression_kinds`` are those by which questions refer to objects; "relation" questions always
    do it by attributes.
    """

    scene: Objects
    split: Split
    random: np.random.Generator
    expression_kinds: Collection[str] = EXPRESSION_KINDS

    def ask(self, kind: str) -> SceneQuestion | None:
        """A question of one of the :data:`QUESTION_KINDS`; None where none is found."""
        askers: Mapping[str, Callable[[], SceneQuestion | None]] = {
            **{name: partial(self._attribute, name) for name in ATTRIBUTES},
            "count": self._count,
            "presence": self._presence,
            "relation": self._relation,
            "box": self._box,
        }
        found = (askers[kind]() for _ in range(_TRIES))
        return next((question for question in found if question is not None), None)

    def _attribute(self, name: str) -> SceneQuestion | None:
        target = pick(self.random, self.scene)
        expression = self._refer(target.index, without=(name,))
        if expression is None:
            return None
        template, prompt = self._word("attribute", name, attribute=name, x=expression.text)
        answer = target.attribute(name)
        return _about(name, template, prompt, expression, answer=answer)

    def _box(self) -> SceneQuestion | None:
        target = pick(self.random, self.scene)
        expression = self._refer(target.index)
        if expression is None:
            return None
        template, prompt = self._word("box", "box", x=expression.text)
        return _about("box", template, prompt, expression, box=target.box)

    def _relation(self) -> SceneQuestion | None:
        one, other = pick(self.random, self.scene), pick(self.random, self.scene)
        directions = [direction for direction in DIRECTIONS if lies(one, direction, other)]
        if not directions:
            return None
        direction = pick(self.random, directions)
        answer = pick(self.random, ("yes", "no"))
        asked = direction if answer == "yes" else OPPOSITE[direction]
        first = self._refer(one.index, kinds=("attribute",))
        second = self._refer(other.index, kinds=("attribute",))
        if first is None or second is None:
            return None
        fields = {**direction_fields(asked), "x": first.text, "y": second.text}
        template, prompt = self._word("relation", "relation", **fields)
        return _about("relation", template, prompt, first, second, answer=answer)

    def _count(self) -> SceneQuestion | None:
        """How many there are; 0, where what is asked for is there apart but not together."""
        names = pick(self.random, [*combinations(ATTRIBUTES, 1), *combinations(ATTRIBUTES, 2)])
        there = Counter(self._values(names))
        by_count: dict[int, list[tuple[str, ...]]] = {0: self._near_misses(names)}
        for values, count in there.items():
            by_count.setdefault(count, []).append(values)
        count = pick(self.random, [number for number, asked in by_count.items() if asked])
        values = pick(self.random, by_count[count])
        return self._about_all("count", names, values, str(count), "many")

    def _presence(self) -> SceneQuestion | None:
        """Whether there is one; what is not there is there apart, if any scene allows that."""
        choices = [*combinations(ATTRIBUTES, 2), *combinations(ATTRIBUTES, 3)]
        for names in shuffled(self.random, choices):
            missing = self._near_misses(names)
            if missing:
                break
        else:
            missing = self._far_misses(names)
        if self.random.random() < 0.5:
            return self._about_all("presence", names, pick(self.random, missing), "no", "one")
        values = pick(self.random, self._values(names))
        return self._about_all("presence", names, values, "yes", "one")

    def _values(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """What every object has of the named attributes."""
        return [tuple(one.attribute(name) for name in names) for one in self.scene]

    def _near_misses(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """What no object has, but one has but for one attribute that another one has."""
        return self._misses(names, self._values(names))

    def _far_misses(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """What no object has, but one has but for one attribute."""
        most = max(len(ATTRIBUTES[name]) for name in names)
        every = [
            tuple(ATTRIBUTES[name][number % len(ATTRIBUTES[name])] for name in names)
            for number in range(most)
        ]
        return self._misses(names, every)

    def _misses(
        self, names: tuple[str, ...], others: list[tuple[str, ...]]
    ) -> list[tuple[str, ...]]:
        there = set(self._values(names))
        exchanged = {
            (*values[:place], other[place], *values[place + 1 :])
            for values in there
            for other in others
            for place in range(len(names))
        }
        return sorted(exchanged - there)

    def _about_all(
        self, kind: str, names: tuple[str, ...], values: tuple[str, ...], answer: str, field: str
    ) -> SceneQuestion:
        """A question about every object with these values; ``field`` is how they are put."""
        description = Description(**dict(zip(names, values, strict=True)))
        fields = noun_fields(description, self.random)
        template, prompt = self._word(kind, kind, **{field: fields[field]})
        targets = tuple(one.index for one in description.keep(self.scene, self.scene))
        return SceneQuestion(kind, template, prompt, (fields[field],), (), targets, answer)

    def _refer(
        self, index: int, kinds: Collection[str] = (), without: Collection[str] = ()
    ) -> Expression | None:
        kinds = kinds or self.expression_kinds
        return refer(self.scene[index], self.scene, self.split, self.random, kinds, without)

    def _word(self, form: str, kind: str, **fields: str) -> tuple[str, str]:
        template, text = fill(QUESTIONS[form][self.split], fields, self.random)
        return template, f"{text}\n{ANSWER_FORMS[kind]}"


def _about(
    kind: str,
    template: str,
    prompt: str,
    *expressions: Expression,
    answer: str | None = None,
    box: Box | None = None,
) -> SceneQuestion:
    texts = tuple(expression.text for expression in expressions)
    targets = tuple(expression.target for expression in expressions)
    return SceneQuestion(kind, template, prompt, texts, expressions, targets, answer, box)
