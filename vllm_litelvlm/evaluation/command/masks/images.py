"""Asks every condition for the masks of every expression about images."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from PIL import Image
from rich.console import Console

from vllm_litelvlm.evaluation.command.arguments import MOST_DRAWN
from vllm_litelvlm.evaluation.command.asking import rotated
from vllm_litelvlm.evaluation.command.conditions import Condition
from vllm_litelvlm.evaluation.command.masks.opening import Opened
from vllm_litelvlm.evaluation.command.masks.progress import progress_bar
from vllm_litelvlm.evaluation.command.masks.record import ImageMasked, ImageRecord, decoded, encoded
from vllm_litelvlm.evaluation.command.masks.settings import MaskSettings
from vllm_litelvlm.evaluation.command.masks.sheet import Shown
from vllm_litelvlm.evaluation.command.tasks import load_refer, load_scenes
from vllm_litelvlm.evaluation.masks.backend import MaskAnswer, MaskQuestion
from vllm_litelvlm.evaluation.masks.metrics import overlap
from vllm_litelvlm.evaluation.masks.protocol import Protocol, ReferringExpression
from vllm_litelvlm.evaluation.samples import Dataset, Sample

#: Expressions of an image that are judged, by protocol; None for all.
PER_IMAGE: Mapping[str, int | None] = {"authors": 3, "all": None}


@dataclass(frozen=True, eq=False)
class Conversation:
    """Expressions about an image that are asked together, and by which protocols.

    ``texts`` are as the model is asked; ``samples`` is this conversation's share of the samples
    about the image.
    """

    number: int
    image: Image.Image
    expressions: tuple[ReferringExpression, ...]
    texts: tuple[str, ...]
    protocols: tuple[str, ...]
    samples: float

    @property
    def names(self) -> tuple[str, ...]:
        """Of the expressions; they tell it apart."""
        return tuple(one.name for one in self.expressions)

    @property
    def name(self) -> str:
        """By which methods that draw are seeded."""
        return " ".join(self.names)


def load_images(settings: MaskSettings) -> Dataset:
    """The data set that the settings name; of scenes, the questions about one object's place.

    Raises OptionsError for what it does not have, and DataError for files that are missing.
    """
    if settings.dataset == "scenes":
        return load_scenes(settings, kinds=("box",))
    return load_refer(settings)


def conversations(settings: MaskSettings, dataset: Dataset) -> Iterator[list[Conversation]]:
    """Those about each image in turn, which are not held."""
    samples = (
        sample
        for sample in islice(dataset, settings.questions)
        if sample.kind == "box" and sample.mask is not None
    )
    for number, (_, about) in enumerate(groupby(samples, key=lambda sample: id(sample.image))):
        yield _about(settings, number, list(about))


def _about(settings: MaskSettings, number: int, samples: Sequence[Sample]) -> list[Conversation]:
    """A conversation that several protocols have is one."""
    asked: dict[tuple[str, ...], tuple[tuple[ReferringExpression, ...], list[str]]] = {}
    for name in settings.protocols:
        protocol = Protocol(PER_IMAGE[name], settings.together, settings.seed)
        for image in protocol.images(samples):
            for expressions in image.conversations:
                key = tuple(one.name for one in expressions)
                asked.setdefault(key, (expressions, []))[1].append(name)
    return [
        Conversation(
            number=number,
            image=samples[0].image,
            expressions=expressions,
            texts=tuple(settings.asked(one.text) for one in expressions),
            protocols=tuple(protocols),
            samples=len(samples) / len(asked),
        )
        for expressions, protocols in asked.values()
    ]


@dataclass(frozen=True)
class ImageAsking:
    """Asks what ``record`` does not hold, and writes it down.

    Args:
        settings: what is asked.
        dataset: of images.
        opened: answers.
        record: of this evaluation.
        console: for the progress bar.
    """

    settings: MaskSettings
    dataset: Dataset
    opened: Opened
    record: ImageRecord
    console: Console

    def go(self) -> list[Condition]:
        """Some images at a time, and of these every condition in turn; returns the conditions.

        The first in turn rotates: who asks first about an image pays for its encoding.
        """
        conditions = self.opened.conditions(self.settings)
        samples = min(self.settings.questions, len(self.dataset))
        images = conversations(self.settings, self.dataset)
        with progress_bar(self.console, "expressions", samples * len(conditions)) as progress:
            number = 0
            while some := list(islice(images, self.settings.concurrent)):
                asked = [one for about in some for one in about]
                for condition in rotated(conditions, number):
                    progress.tell(condition.name)
                    for done in self._ask(condition, asked):
                        progress.advance(done)
                number += 1
        return conditions

    def _ask(self, condition: Condition, asked: Sequence[Conversation]) -> Iterator[float]:
        """Yields the share of samples that is done, conversation by conversation."""
        missing = []
        for one in asked:
            if self.record.known((condition.name, one.names)):
                yield one.samples
            else:
                missing.append(one)
        questions = [
            MaskQuestion([one.image], one.texts, self.settings.options(condition, one))
            for one in missing
        ]
        began = time.perf_counter()
        answers = self.opened.answer(questions) if questions else ()
        for one, answer in zip(missing, answers, strict=True):
            now = time.perf_counter()
            self._write(condition, one, answer, now - began)
            began = now
            yield one.samples

    def _write(
        self, condition: Condition, one: Conversation, answer: MaskAnswer, took: float
    ) -> None:
        [masks] = answer.masks
        overlaps = [
            overlap(mask, expression.mask)
            for mask, expression in zip(masks, one.expressions, strict=True)
        ]
        line = ImageMasked(
            condition=condition.name,
            image=one.number,
            names=one.names,
            protocols=one.protocols,
            overlaps=tuple((found.intersection, found.union) for found in overlaps),
            prompt_tokens=answer.prompt_tokens,
            all_tokens=self.opened.all_tokens,
            took=took,
            masks=encoded(list(masks)) if one.number < MOST_DRAWN else None,
        )
        self.record.add(line)


def shown(settings: MaskSettings, dataset: Dataset, record: ImageRecord) -> list[Shown]:
    """One expression about each of the first images, another one each time."""
    masks = {line.key: line.masks for line in record.answers}
    names = dict.fromkeys(line.condition for line in record.answers)
    found = []
    for number, about in enumerate(islice(conversations(settings, dataset), settings.drawn)):
        one = about[number % len(about)]
        place = number % len(one.expressions)
        predicted = {
            name: decoded(kept[place])
            for name in names
            if (kept := masks.get((name, one.names))) is not None
        }
        expression = one.expressions[place]
        found.append(Shown(one.image, one.texts[place], expression.mask, predicted))
    return found
