"""The data set of scenes: each split with scenes and wordings of its own."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.samples import Sample
from vllm_litelvlm.evaluation.scenes.expressions import EXPRESSION_KINDS, Expression, refer
from vllm_litelvlm.evaluation.scenes.phrases import shuffled
from vllm_litelvlm.evaluation.scenes.questions import QUESTION_KINDS, Asker, SceneQuestion
from vllm_litelvlm.evaluation.scenes.scene import Scene, SceneOptions
from vllm_litelvlm.evaluation.scenes.wording import SPLITS, Split

#: How many questions are tried for each one that a scene is to have.
_TRIES = 3
#: How many scenes without a question are let pass.
_PATIENCE = 200


@dataclass(frozen=True, kw_only=True)
class SceneSample(Sample):
    """A sample that knows the scene behind its image, and the question behind its prompt.

    ``expressions`` are those among ``texts`` that mean one object, the question's own first.
    """

    scene: Scene
    question: SceneQuestion
    expressions: tuple[Expression, ...]


def scene_seed(split: Split, number: int) -> int:
    """The seed of a split's scene; no two splits share one."""
    return len(SPLITS) * number + SPLITS.index(split)


class SceneDataset:
    """Questions about scenes, made when they are asked for, the same every time.

    Args:
        split: its scenes and wordings are in no other split.
        size: how many samples there are.
        questions: how many samples a scene has, if so many are found; their prompts differ.
        texts: how many texts a sample has at least. Beyond the question's own, which come first,
            they mean other objects as far as there are any. Questions for which there are not
            enough are left out.
        kinds: of the questions, each as often as the others where they are found.
        expression_kinds: of the expressions.
        scenes: how scenes are drawn.
        first: the number of the first scene, 0 or more; later ones are at hand for more training.

    Raises OptionsError for kinds that do not exist and numbers that are too small, and when it is
    read, where scenes allow no question.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        *,
        questions: int = 8,
        texts: int = 1,
        kinds: Sequence[str] = QUESTION_KINDS,
        expression_kinds: Collection[str] = EXPRESSION_KINDS,
        scenes: SceneOptions | None = None,
        first: int = 0,
    ) -> None:
        _check_kinds("kinds", kinds, QUESTION_KINDS)
        _check_kinds("expression_kinds", expression_kinds, EXPRESSION_KINDS)
        numbers = (("size", size, 1), ("questions", questions, 1), ("texts", texts, 1))
        for name, value, least in (*numbers, ("first", first, 0)):
            if value < least:
                raise OptionsError(f"{name}={value}: want at least {least}")
        self.name = "scenes"
        self.split: Literal["train", "val", "test", "testA", "testB"] = split
        self._own_split: Split = split
        self._size, self._questions, self._texts = size, questions, texts
        self._kinds, self._expression_kinds = kinds, expression_kinds
        self._scenes, self._first = scenes or SceneOptions(), first

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[SceneSample]:
        left, number, last = self._size, self._first, self._first
        while left > 0:
            samples = self.about(number)[:left]
            if samples:
                last = number
            elif number - last == _PATIENCE:
                raise OptionsError(f"{_PATIENCE} scenes in a row allow no question of those kinds")
            left -= len(samples)
            number += 1
            yield from samples

    def about(self, number: int) -> list[SceneSample]:
        """The samples about one scene of the split."""
        scene = Scene.make(scene_seed(self._own_split, number), self._scenes)
        random = np.random.Generator(np.random.PCG64([scene.seed, 1]))
        asker = Asker(scene.objects, self._own_split, random, self._expression_kinds)
        wanted: list[str] = []
        prompts: set[str] = set()
        samples: list[SceneSample] = []
        for _ in range(_TRIES * self._questions):
            wanted = wanted or shuffled(random, self._kinds)
            question = asker.ask(wanted.pop())
            if question is None or question.prompt in prompts:
                continue
            name = f"{self.split}-{number:06d}-{len(samples):02d}"
            sample = self._sample(name, scene, question, random)
            if len(sample.texts) < self._texts:
                continue
            prompts.add(question.prompt)
            samples.append(sample)
            if len(samples) == self._questions:
                break
        return samples

    def _sample(
        self, name: str, scene: Scene, question: SceneQuestion, random: np.random.Generator
    ) -> SceneSample:
        more = self._more(scene, question, random)
        return SceneSample(
            name=name,
            image=scene.image,
            prompt=question.prompt,
            texts=question.texts + tuple(expression.text for expression in more),
            kind=question.kind,
            answer=question.answer,
            box=question.box,
            mask=scene.mask(*question.targets) if question.targets else None,
            scene=scene,
            question=question,
            expressions=question.expressions + more,
        )

    def _more(
        self, scene: Scene, question: SceneQuestion, random: np.random.Generator
    ) -> tuple[Expression, ...]:
        """Expressions for the texts that a question lacks; for its own objects last."""
        found: list[Expression] = []
        texts = set(question.texts)
        order = shuffled(random, scene.objects)
        order.sort(key=lambda one: one.index in question.targets)
        for target in order * _TRIES:
            if len(texts) >= self._texts:
                break
            expression = refer(
                target, scene.objects, self._own_split, random, self._expression_kinds
            )
            if expression is not None and expression.text not in texts:
                texts.add(expression.text)
                found.append(expression)
        return tuple(found)


def _check_kinds(name: str, kinds: Collection[str], known: Sequence[str]) -> None:
    if not kinds or not set(kinds) <= set(known):
        raise OptionsError(f"{name}={tuple(kinds)}: want some of {', '.join(known)}")
