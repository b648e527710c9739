"""Statistics of answers: scores, and how much of the all-token score each condition keeps.

Samples about one image are not independent of each other, so standard errors are those of sums
over images (cluster-robust). The error of a ratio to the all-token score is its first-order one
from the differences in the same samples (the delta method).
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vllm_litelvlm.evaluation.command.asking import GUESS
from vllm_litelvlm.evaluation.command.conditions import (
    ALL_TOKENS,
    BESIDE,
    Condition,
    placed_label,
)
from vllm_litelvlm.evaluation.command.record import Answered

#: All kinds of questions together, each with the same weight.
ALL_KINDS = "all"

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean or a ratio; the standard error is None where there is one image only."""

    value: float
    standard_error: float | None

    def show(self, digits: int) -> str:
        """As "0.51 ± 0.03"."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.{digits}f}"
        return f"{self.value:.{digits}f}{error}"


@dataclass(frozen=True)
class Row:
    """One condition and one kind of question, or all kinds.

    ``score`` and ``iou`` (of boxes; None without any) from 0 to 1; ``relative`` to the all-token
    score in percent, None where that is 0. Token counts are means. ``unread``: such an answer,
    where the model writes boxes in a form that is not read, so that the score says nothing.
    ``beside``: by how much the score is above that of some methods at the same budget and
    positions, in the same questions.
    """

    condition: str
    label: str
    budget: int | None
    kind: str
    questions: int
    score: Estimate
    relative: Estimate | None
    iou: Estimate | None
    prompt_tokens: float
    visual_tokens: float
    requests_per_second: float | None
    unread: str | None = None
    beside: Mapping[str, Estimate] = field(default_factory=dict)


def summarise(
    conditions: Sequence[Condition],
    answers: Sequence[Answered],
    reads_box: Callable[[str], bool] = lambda answer: True,
) -> list[Row]:
    """A row a condition and kind, those of all kinds first; the guess's come last.

    ``reads_box``: whether an answer has the form in which boxes are read.
    """
    by_condition: dict[str, dict[str, Answered]] = {}
    for answer in answers:
        by_condition.setdefault(answer.condition, {})[answer.sample] = answer
    whole = by_condition[ALL_TOKENS]
    kinds = list(dict.fromkeys(answer.kind for answer in whole.values()))
    unread = {
        kind: _unread([one for one in whole.values() if _is(kind, one)], reads_box)
        for kind in kinds
    }
    unread[ALL_KINDS] = next(filter(None, unread.values()), None)
    named = [(one.name, one.method.label, one.budget) for one in conditions]
    rows: list[Row] = []
    for name, label, budget in [*named, (GUESS, GUESS, None)]:
        for kind in [ALL_KINDS, *kinds]:
            some = [by_condition[name][sample] for sample in whole if _is(kind, whole[sample])]
            row = _row((name, label, budget), kind, some, whole)
            rows.append(row if label == GUESS else replace(row, unread=unread.get(kind)))
    complete = {one.name for one in conditions}  # of others the record may hold a part
    others = {one.name: _beside(one, complete) for one in conditions}
    return [replace(row, beside=_gains(row, by_condition, others)) for row in rows]


def _beside(condition: Condition, asked: Container[str]) -> dict[str, str]:
    """The conditions that one is compared with, by their methods."""
    if condition.budget is None:
        return {}
    method = condition.method
    labels = {one: placed_label(one, method.positions) for one in BESIDE}
    names = {
        one: replace(condition, method=replace(method, label=label)).name
        for one, label in labels.items()
    }
    return {one: name for one, name in names.items() if name != condition.name and name in asked}


def _gains(
    row: Row,
    by_condition: Mapping[str, Mapping[str, Answered]],
    others: Mapping[str, Mapping[str, str]],
) -> dict[str, Estimate]:
    """Of a row, the difference to each of the conditions that it is compared with."""
    mine = [one for one in by_condition[row.condition].values() if _is(row.kind, one)]
    kinds = np.array([answer.kind for answer in mine])
    images = np.array([answer.image for answer in mine])
    found = {}
    for method, name in others.get(row.condition, {}).items():
        theirs = by_condition[name]
        differences = [answer.score - theirs[answer.sample].score for answer in mine]
        found[method] = mean(np.array(differences), kinds, images)
    return found


def _unread(answers: Sequence[Answered], reads_box: Callable[[str], bool]) -> str | None:
    """An answer that is no box, where all are about boxes and most are none; else None."""
    if any(answer.iou is None for answer in answers):
        return None
    unread = [answer.text for answer in answers if not reads_box(answer.text)]
    return unread[0] if 2 * len(unread) > len(answers) else None


def _is(kind: str, answer: Answered) -> bool:
    return kind in (ALL_KINDS, answer.kind)


def _row(
    named: tuple[str, str, int | None],
    kind: str,
    answers: Sequence[Answered],
    whole: Mapping[str, Answered],
) -> Row:
    condition, label, budget = named
    scores = np.array([answer.score for answer in answers])
    full = np.array([whole[answer.sample].score for answer in answers])
    kinds = np.array([answer.kind for answer in answers])
    images = np.array([answer.image for answer in answers])
    boxes = np.array([answer.iou is not None for answer in answers])
    overlaps = np.array([answer.iou for answer in answers if answer.iou is not None])
    seconds = math.fsum(answer.took for answer in answers)
    return Row(
        condition=condition,
        label=label,
        budget=budget,
        kind=kind,
        questions=len(answers),
        score=mean(scores, kinds, images),
        relative=ratio(scores, full, kinds, images),
        iou=mean(overlaps, kinds[boxes], images[boxes]) if len(overlaps) else None,
        prompt_tokens=float(np.mean([answer.prompt_tokens for answer in answers])),
        visual_tokens=float(np.mean([answer.visual_tokens for answer in answers])),
        requests_per_second=len(answers) / seconds if seconds else None,
    )


def mean(scores: Numbers, kinds: NDArray[np.str_], images: NDArray[np.int64]) -> Estimate:
    """The mean over kinds of each kind's mean score; all arguments [samples]."""
    weights, centred = _by_kind(scores, kinds)
    return Estimate(float(weights @ scores), _error(weights * centred, images))


def gain(differences: Numbers, kinds: NDArray[np.str_], images: NDArray[np.int64]) -> Estimate:
    """The mean over kinds of each kind's mean difference, with the error of no true difference.

    That is what chance alone makes of it where both are equally good: never less than the usual
    error, which is nothing where a kind has one question.
    """
    weights, _ = _by_kind(differences, kinds)
    _, places = np.unique(images, return_inverse=True)
    sums = np.bincount(places, weights=weights * differences)
    return Estimate(float(sums.sum()), float(np.sqrt(sums @ sums)))


def ratio(
    scores: Numbers, full: Numbers, kinds: NDArray[np.str_], images: NDArray[np.int64]
) -> Estimate | None:
    """100 times the ratio of two such means, of the same samples; None where the second is 0."""
    weights, centred = _by_kind(scores, kinds)
    _, full_centred = _by_kind(full, kinds)
    base = float(weights @ full)
    if base == 0:
        return None
    value = float(weights @ scores) / base
    influence = weights * (centred - value * full_centred) / base
    error = _error(influence, images)
    return Estimate(100 * value, None if error is None else 100 * error)


def _by_kind(scores: Numbers, kinds: NDArray[np.str_]) -> tuple[Numbers, Numbers]:
    """Each sample's weight, and its score less its kind's mean; [samples] both."""
    _, places, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    sums = np.bincount(places, weights=scores)
    return 1 / (len(counts) * counts[places]), scores - (sums / counts)[places]


def _error(influence: Numbers, images: NDArray[np.int64]) -> float | None:
    """The standard error of a sum whose parts are independent between images alone."""
    found, places = np.unique(images, return_inverse=True)
    count = len(found)
    if count < 2:
        return None
    sums = np.bincount(places, weights=influence)
    return float(np.sqrt(count / (count - 1) * (sums @ sums)))
