"""Asks every condition about every sample, and writes the answers down."""

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.backend import Backend, Question
from vllm_litelvlm.evaluation.command.conditions import ALL_TOKENS, Condition, grid
from vllm_litelvlm.evaluation.command.record import Answered, Record
from vllm_litelvlm.evaluation.command.settings import Settings
from vllm_litelvlm.evaluation.command.tasks import Task
from vllm_litelvlm.evaluation.samples import Sample
from vllm_litelvlm.pruning.registry import decoder_method_names

#: Answers that no model gave.
GUESS = "guess"
#: How many questions are asked together, for each that is on its way at once.
_ROUNDS = 4

Item = TypeVar("Item")


def ask_all(
    settings: Settings,
    task: Task,
    opened: AbstractContextManager[Backend],
    record: Record,
    console: Console,
) -> list[Condition]:
    """Ask what ``record`` does not hold; the conditions, all of them answered.

    The backend is opened only if something is left to ask. A method inside the language model is
    left out at budgets that it cannot run with, and ``console`` told; for other conditions that
    the model or the backend cannot run, OptionsError is raised.
    """
    questions = min(settings.questions, len(task.dataset))
    whole = [answer for answer in record.answers if answer.condition == ALL_TOKENS]
    if whole:
        tokens = {answer.visual_tokens for answer in whole}
        conditions = grid(
            settings.methods, settings.budgets, tokens.pop() if len(tokens) == 1 else None
        )
        names = [GUESS, *(condition.name for condition in conditions)]
        if all(record.count(name) >= questions for name in names):
            return conditions
    with opened as backend:
        all_tokens = _all_tokens(backend)
        conditions = grid(settings.methods, settings.budgets, all_tokens)
        asked = Offered(backend, console, all_tokens is None)
        conditions = [one for one in conditions if asked.runs(one)]
        Asking(settings, task, backend, record, console).go(conditions, questions)
    return conditions


def _all_tokens(backend: Backend) -> int | None:
    """What every image has without pruning, None where that follows from its size.

    Warms the backend up besides.
    """
    blanks = [blank({"method": ALL_TOKENS}, size) for size in ((64, 64), (640, 480))]
    tokens = {answer.visual_tokens for answer in backend.answer(blanks)}
    return tokens.pop() if len(tokens) == 1 else None


@dataclass(frozen=True)
class Offered:
    """What the backend can run, found out by asking.

    Args:
        backend: that is asked.
        console: is told what is left out.
        every: whether any method may be missing, as for models that lack what some go by.
    """

    backend: Backend
    console: Console
    every: bool

    def runs(self, condition: Condition) -> bool:
        """Whether a condition can run; a method inside the language model cannot with any budget.

        Other conditions are taken to run unless ``every`` is in question.
        """
        method = condition.method
        if not self.every and method.method not in decoder_method_names():
            return True
        options = {"method": method.method, **method.options}
        if condition.budget is not None:
            options["budget"] = condition.budget
        try:
            self.backend.answer([blank(options)])
        except OptionsError as error:
            told = f"{condition.name} is left out: {error}"
            self.console.print(told, style="yellow", markup=False, highlight=False)
            return False
        return True


def blank(options: Mapping[str, Any], size: tuple[int, int] = (64, 64)) -> Question:
    """What finds out whether options can run, and with how many tokens."""
    return Question(Image.new("RGB", size), "What is this?", options, max_tokens=1)


@dataclass(frozen=True)
class Asking:
    """Asks what the record does not hold, and writes it there."""

    settings: Settings
    task: Task
    backend: Backend
    record: Record
    console: Console

    def go(self, conditions: Sequence[Condition], questions: int) -> None:
        """Some samples at a time, and of these every condition in turn.

        The first in turn rotates: who asks first about an image pays for its encoding.
        """
        columns = (
            TextColumn("{task.description:<40}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("answers"),
            TimeElapsedColumn(),
        )
        samples = islice(self.task.dataset, questions)
        with Progress(*columns, console=self.console, refresh_per_second=1) as progress:
            bar = progress.add_task("", total=questions * len(conditions))
            for number, some in enumerate(self.batches(samples)):
                self._guess(some)
                for condition in rotated(conditions, number):
                    progress.update(bar, description=condition.name)
                    self.ask(condition, some)
                    progress.advance(bar, len(some))

    def batches(self, samples: Iterator[Sample]) -> Iterator[list[Sample]]:
        """As many at a time as are asked together."""
        while some := list(islice(samples, _ROUNDS * self.settings.concurrent)):
            yield some

    def ask(self, condition: Condition, samples: Sequence[Sample]) -> None:
        """One condition about some samples, together."""
        missing = [s for s in samples if not self.record.has(condition.name, s.name)]
        if not missing:
            return
        began = time.perf_counter()
        answers = self.backend.answer([self._question(condition, sample) for sample in missing])
        took = (time.perf_counter() - began) / len(missing)
        for sample, answer in zip(missing, answers, strict=True):
            counts = (answer.prompt_tokens, answer.visual_tokens)
            self._write(condition.name, sample, answer.text, counts, took)

    def _question(self, condition: Condition, sample: Sample) -> Question:
        settings = self.settings
        options = condition.options(sample, settings.by_expressions, settings.seed)
        if settings.frame != "crop":
            options["frame"] = settings.frame
        return Question(sample.image, sample.prompt, options, self.task.max_tokens(sample))

    def _guess(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if not self.record.has(GUESS, sample.name):
                self._write(GUESS, sample, self.task.guess(sample), (0, 0), 0)

    def _write(
        self, condition: str, sample: Sample, text: str, counts: tuple[int, int], took: float
    ) -> None:
        judged = self.task.judge(sample, text)
        answered = Answered(
            condition=condition,
            sample=sample.name,
            kind=sample.kind,
            image=zlib.crc32(sample.image.tobytes()),
            text=text,
            score=judged.score,
            iou=judged.iou,
            prompt_tokens=counts[0],
            visual_tokens=counts[1],
            took=took,
        )
        self.record.add(answered)


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """Each time starts one further than the time before."""
    start = number % len(items)
    return [*items[start:], *items[:start]]
