"""Answers of ``--tune`` by their question's place in the data set: asked, counted and compared."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_litelvlm.evaluation.backend import Answer, Backend, Question
from vllm_litelvlm.evaluation.command.asking import Asking, Offered, rotated
from vllm_litelvlm.evaluation.command.conditions import ALL_TOKENS, Condition, Method
from vllm_litelvlm.evaluation.command.record import Answered
from vllm_litelvlm.evaluation.command.summary import Estimate, Numbers, gain, mean
from vllm_litelvlm.evaluation.samples import Sample


class Lazily:
    """A backend that opens when it is first asked, and stays open as long as ``running``."""

    def __init__(self, opened: AbstractContextManager[Backend], running: ExitStack) -> None:
        self._opened = opened
        self._running = running

    @cached_property
    def backend(self) -> Backend:
        """The backend itself."""
        return self._running.enter_context(self._opened)

    def methods(self) -> tuple[str, ...]:
        """Those of the backend."""
        return self.backend.methods()

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """As the backend does."""
        return self.backend.answer(questions)


class Answers:
    """What methods answer at every budget, asked where it is not there yet.

    Args:
        asking: of which the record has all of ``conditions`` about all questions.
        conditions: keep-all among them.
        budgets: at which every method is asked.
        questions: how many, the data set's first.
        most: how many may be asked in all, for the progress bar.
    """

    def __init__(
        self,
        asking: Asking,
        conditions: Sequence[Condition],
        budgets: Sequence[int],
        questions: int,
        most: int,
    ) -> None:
        self.budgets = budgets
        self._asking = asking
        self._record = asking.record
        self._most = most
        # Whoever was asked about all questions was asked in the data set's order.
        whole = [one.sample for one in self._record.answers if one.condition == ALL_TOKENS]
        self._names = whole[:questions]
        self._counted = {(one.name, name) for one in conditions for name in self._names}

    @property
    def spent(self) -> int:
        """How many questions the search has taken, with those whose answers were there already."""
        return len(self._counted)

    def conditions(self, method: Method) -> list[Condition]:
        """A method at every budget."""
        return [Condition(method, budget) for budget in self.budgets]

    def offered(self, methods: Sequence[Method]) -> list[Method]:
        """Those that the model can run; the console is told of others."""
        offered = Offered(self._asking.backend, self._asking.console, every=True)
        return [
            method
            for method in methods
            if any(self._record.count(one.name) for one in self.conditions(method))
            or all(offered.runs(one) for one in self.conditions(method)[-1:])
        ]

    def ask(self, methods: Sequence[Method], places: Sequence[int]) -> None:
        """Ask each of the methods about the same questions, by their places in the data set."""
        conditions = [one for method in methods for one in self.conditions(method)]
        keys = {(one.name, self._names[place]) for one in conditions for place in places}
        if not all(map(self._record.known, keys)):
            self._ask(conditions, places)
        self._counted |= keys

    def _ask(self, conditions: Sequence[Condition], places: Sequence[int]) -> None:
        columns = (
            TextColumn("{task.description:<40}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("questions, {task.remaining} left"),
            TimeElapsedColumn(),
        )
        self._asking.backend.methods()  # it opens before the bar: both draw on the console
        console = self._asking.console
        shown = Progress(
            *columns,
            console=console,
            refresh_per_second=1,
            transient=True,  # every round has a bar, and its outcome is told
            disable=not console.is_terminal,
        )
        with shown as progress:
            bar = progress.add_task("", total=self._most, completed=self.spent)
            for number, some in enumerate(self._asking.batches(self._samples(places))):
                for condition in rotated(conditions, number):
                    progress.update(bar, description=condition.name)
                    self._asking.ask(condition, some)
                    self._counted |= {(condition.name, sample.name) for sample in some}
                    progress.update(bar, completed=self.spent)

    def _samples(self, places: Sequence[int]) -> Iterator[Sample]:
        wanted = set(places)
        for place, sample in enumerate(islice(self._asking.task.dataset, max(wanted) + 1)):
            if place in wanted:
                yield sample

    def score(self, method: Method, places: Sequence[int], budgets: Sequence[int] = ()) -> Estimate:
        """The mean over kinds of questions of the share of right answers, and over budgets.

        ``budgets``: some of them; else all.
        """
        scores = self._scores(method, places, budgets or self.budgets)
        return mean(scores, *self._kinds_and_images(places))

    def difference(self, method: Method, other: Method, places: Sequence[int]) -> Estimate:
        """By how much a method scores better than another on the same questions.

        The error is that of no true difference.
        """
        scores, less = (self._scores(one, places, self.budgets) for one in (method, other))
        return gain(scores - less, *self._kinds_and_images(places))

    def images(self, places: Sequence[int]) -> list[int]:
        """What tells the images of questions apart."""
        return [answer.image for answer in self._answers(ALL_TOKENS, places)]

    def _scores(self, method: Method, places: Sequence[int], budgets: Sequence[int]) -> Numbers:
        """Each question's, the mean over budgets."""
        names = [Condition(method, budget).name for budget in budgets]
        scores = [[one.score for one in self._answers(name, places)] for name in names]
        means: Numbers = np.array(scores).mean(axis=0)
        return means

    def _kinds_and_images(
        self, places: Sequence[int]
    ) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        kinds = [answer.kind for answer in self._answers(ALL_TOKENS, places)]
        return np.array(kinds), np.array(self.images(places))

    def _answers(self, condition: str, places: Sequence[int]) -> list[Answered]:
        return [self._record.of((condition, self._names[place])) for place in places]
