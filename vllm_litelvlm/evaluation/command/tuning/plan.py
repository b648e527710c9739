"""How many questions ``--tune`` asks, and of what: counted before the first one is."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.command.tuning.space import Space

#: An axis is searched in rounds: about every fourth question, every second, and all of them.
STRIDES = (4, 2, 1)
#: With fewer questions nothing can be told.
_LEAST = 16
#: Unless said otherwise, so often every axis may be searched.
_PASSES = 2


@dataclass(frozen=True)
class Plan:
    """The data set's first ``searched`` questions choose, the others of ``questions`` judge.

    ``most``: how many may be asked of the model in all, each condition's own.
    """

    questions: int
    searched: int
    most: int

    def round(self, stride: int) -> range:
        """The places of a round's questions in the data set."""
        return range(0, self.searched, stride)

    def axis_cost(self, others: int, budgets: int) -> int:
        """How many questions an axis takes with so many methods on it, besides the one at hand."""
        return budgets * _axis_cost(self.searched, others)

    def judging_cost(self, budgets: int) -> int:
        """How many questions more it takes to judge what the search found."""
        return budgets * (self.questions - self.searched)


def kept(contenders: int) -> int:
    """How many go on to the next round: the better half."""
    return (contenders + 1) // 2


def plan_of(space: Space, budgets: int, questions: int, most: int | None) -> Plan:
    """As many questions for the search as ``most`` allows, and no more than half of all.

    None allows for half, and for every axis twice. Raises OptionsError where too few are left to
    search every axis once.
    """
    least = 2 * _LEAST
    if questions < least:
        raise OptionsError(
            f"--tune has {questions} questions; allowed: at least {least} (--questions), one half "
            "to choose by and one to judge by."
        )
    others = [len(space.others(space.default, axis)) for axis in space.axes]
    half = questions // 2
    if most is None:
        most = _cost(others, budgets, questions, half, passes=_PASSES)
    needed = _cost(others, budgets, questions, _LEAST)
    if most < needed:
        raise OptionsError(
            f"--tune-questions is {most}; allowed: at least {needed}, which {space.default.label} "
            f"takes with --questions {questions} and as many budgets ({budgets}). Fewer of these "
            "take less."
        )
    fits = (n for n in range(half, _LEAST - 1, -1) if _cost(others, budgets, questions, n) <= most)
    return Plan(questions, next(fits), most)


def _cost(
    others: Sequence[int], budgets: int, questions: int, searched: int, passes: int = 1
) -> int:
    """keep-all, random and the defaults about all questions, the search, and what judges it."""
    search = passes * sum(_axis_cost(searched, count) for count in others)
    return questions + budgets * (2 * questions + search + questions - searched)


def _axis_cost(searched: int, contenders: int) -> int:
    cost, before = 0, 0
    for stride in STRIDES:
        asked = len(range(0, searched, stride))
        cost += contenders * (asked - before)
        contenders, before = kept(contenders), asked
    return cost
