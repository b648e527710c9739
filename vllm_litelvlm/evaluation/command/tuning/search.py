"""``--tune``: searches a method's options by some questions and judges what it found by others.

The rule. An axis is an option with a few values, or options that are chosen together. One axis
after another the settings along it contend in three rounds, about a fourth of the search's
questions, half of them and all, and the better half of them goes on each time; the method moves to
the best where that is better than where it stands by more than one standard error of the
difference, on the same questions. The axes come again until nothing moves or the next one would
take more questions than are left. Where it has moved, both ends of the way answer the questions
that the search has not seen, about other images, and there the difference must be more than two of
its standard errors, or the defaults stay: the best of many is best by luck too.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

from rich.console import Console

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.backend import Backend
from vllm_litelvlm.evaluation.command.asking import Asking, ask_all, blank
from vllm_litelvlm.evaluation.command.conditions import Condition, Method
from vllm_litelvlm.evaluation.command.record import Record
from vllm_litelvlm.evaluation.command.settings import Settings
from vllm_litelvlm.evaluation.command.summary import Estimate
from vllm_litelvlm.evaluation.command.tasks import Task
from vllm_litelvlm.evaluation.command.tuning.answers import Answers, Lazily
from vllm_litelvlm.evaluation.command.tuning.plan import STRIDES, Plan, kept
from vllm_litelvlm.evaluation.command.tuning.space import Axis, Space

#: Standard errors of the difference by which the method moves in the search.
MOVES = 1
#: And by which what the search found takes the place of the defaults.
JUDGES = 2
#: A single question that went otherwise is one standard error, give or take this.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Tuned:
    """What ``--tune`` found.

    ``tried``: every method, with the places of the questions that it was asked in the search, the
    default first. ``found`` is where the search ended, ``gain`` by how much it scores better than
    the default on ``unseen`` questions; None where it is the default, or there are none.
    """

    plan: Plan
    answers: Answers
    tried: Sequence[tuple[Method, range]]
    default: Method
    found: Method
    unseen: Sequence[int]
    gain: Estimate | None
    #: Options whose axes were left out in the end, for want of questions.
    unsearched: Sequence[str]

    @property
    def chosen(self) -> Method:
        """The default, unless what was found is better beyond doubt."""
        return self.found if clearly(self.gain, JUDGES) else self.default


def clearly(difference: Estimate | None, errors: float) -> bool:
    """Whether a difference is above so many of its standard errors; never that of one image."""
    if difference is None or difference.standard_error is None:
        return False
    return difference.value > errors * difference.standard_error * (1 + _ROUNDING)


def tune(
    settings: Settings,
    space: Space,
    plan: Plan,
    task: Task,
    opened: AbstractContextManager[Backend],
    record: Record,
    console: Console,
) -> tuple[list[Condition], Tuned]:
    """Search and judge; the conditions that were asked about all questions, and what was found.

    The backend is opened only if something is left to ask. Raises OptionsError where the model
    cannot run the method.
    """
    default = space.default
    with ExitStack() as running:
        backend = Lazily(opened, running)
        least = min(settings.budgets)
        if not record.count(Condition(default, least).name):
            backend.answer([blank({"method": default.method, **default.options, "budget": least})])
        conditions = ask_all(settings, task, nullcontext(backend), record, console)
        budgets = [one.budget for one in conditions if one.method.label == default.label]
        asked = [budget for budget in budgets if budget is not None]
        if not asked:
            raise OptionsError("--budgets keeps all tokens, where there is nothing to tune.")
        asking = Asking(settings, task, backend, record, console)
        answers = Answers(asking, conditions, asked, plan.questions, plan.most)
        search = _Search(space, plan, answers, console)
        found = search.go()
        return _judged(conditions, search, found)


@dataclass
class _Search:
    space: Space
    plan: Plan
    answers: Answers
    console: Console
    #: By label, each with the last round that it was in.
    tried: dict[str, tuple[Method, range]] = field(default_factory=dict)
    unsearched: list[str] = field(default_factory=list)
    #: By the number of an axis, where the method stood when it was searched.
    _stood: dict[int, str] = field(default_factory=dict)

    def go(self) -> Method:
        """From the default to where no axis leads further."""
        current = self.space.default
        self.tried[current.label] = current, self.plan.round(1)
        moved = True
        while moved:
            moved = False
            for number, axis in enumerate(self.space.axes):
                others = self.space.others(current, axis)
                if self._stood.get(number) == current.label or not self._affords(len(others)):
                    continue
                best = self._best(current, others)
                self._tell(axis, current, best)
                moved = moved or best is not current
                current = best
                self._stood[number] = current.label
        self.unsearched = [
            _named(axis)
            for number, axis in enumerate(self.space.axes)
            if self._stood.get(number) != current.label
        ]
        return current

    def _affords(self, others: int) -> bool:
        budgets = len(self.answers.budgets)
        left = self.plan.most - self.answers.spent - self.plan.judging_cost(budgets)
        return self.plan.axis_cost(others, budgets) <= left

    def _best(self, current: Method, others: Sequence[Method]) -> Method:
        """The one of ``others`` that is better than ``current``, or that."""
        others = self.answers.offered(others)
        for stride in STRIDES:
            if not others:
                return current
            places = self.plan.round(stride)
            self.answers.ask(others, places)
            for one in others:
                if one.label not in self.tried or len(self.tried[one.label][1]) < len(places):
                    self.tried[one.label] = one, places
            gains = {one.label: self.answers.difference(one, current, places) for one in others}
            others = sorted(others, key=lambda one: -gains[one.label].value)
            best, others = others[0], others[: kept(len(others))]
        return best if clearly(gains[best.label], MOVES) else current

    def _tell(self, axis: Axis, before: Method, best: Method) -> None:
        told = f"{_named(axis)}: {before.label} stays"
        if best is not before:
            gain = self.answers.difference(best, before, self.plan.round(1))
            told = f"{_named(axis)}: {best.label}, better than {before.label} by {gain.show(3)}"
        self.console.print(told, markup=False, highlight=False)


def _named(axis: Axis) -> str:
    return " and ".join(axis[0])


def _judged(
    conditions: list[Condition], search: _Search, found: Method
) -> tuple[list[Condition], Tuned]:
    """Ask what was found about all questions, and compare it where the search has not looked."""
    answers, plan, default = search.answers, search.plan, search.space.default
    seen = set(answers.images(plan.round(1)))
    others = range(plan.searched, plan.questions)
    unseen = [
        place
        for place, image in zip(others, answers.images(others), strict=True)
        if image not in seen
    ]
    gain = None
    if found is not default:
        answers.ask([found], range(plan.questions))
        conditions = [*conditions, *answers.conditions(found)]
        gain = answers.difference(found, default, unseen) if unseen else None
    tried = list(search.tried.values())
    return conditions, Tuned(plan, answers, tried, default, found, unseen, gain, search.unsearched)
