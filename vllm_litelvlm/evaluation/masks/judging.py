"""J, F and J&F of videos, frame by frame, and of data sets of them."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vllm_litelvlm.evaluation.analysis.estimate import Estimate
from vllm_litelvlm.evaluation.masks.boundary import Mask, Outline
from vllm_litelvlm.evaluation.masks.jackknife import jackknife
from vllm_litelvlm.evaluation.masks.metrics import check_masks, overlap


@dataclass(frozen=True)
class Similarity:
    """What the masks of one expression or object in a video are worth, means over its frames."""

    j: float
    f: float

    @property
    def j_and_f(self) -> float:
        """The mean of both."""
        return (self.j + self.f) / 2


class VideoJudge:
    """Compares a video's masks with the right ones; nothing of a frame is kept but its figures.

    Args:
        matched: whether predictions are paired with objects so that the sum of J&F is greatest,
            whichever object each one was meant for. The "unsupervised" task of
            davis2017-evaluation does so, by which VideoGLaMM and others judge Ref-DAVIS17; it may
            reward a mask of a wrong object. Otherwise the first prediction is compared with the
            first object, and so on.
    """

    def __init__(self, *, matched: bool = False) -> None:
        self._matched = matched
        self._frames: list[NDArray[np.float64]] = []

    def add(self, predicted: Mask, truth: Mask, void: Mask | None = None) -> None:
        """Compare the masks of a frame.

        Args:
            predicted: bool [objects, height, width].
            truth: the same of the right ones; an object that is not to be seen has no pixels.
            void: pixels that do not count, bool [height, width].

        Raises ValueError for other types or sizes, or other sizes or numbers than before.
        """
        check_masks(predicted, truth)
        count = len(predicted)
        if self._frames and self._frames[0].shape[-1] != count:
            raise ValueError(
                f"A frame has {count} masks and the first had {self._frames[0].shape[-1]}."
            )
        if void is not None:
            predicted, truth = predicted & ~void, truth & ~void
        guesses, answers = list(map(Outline, predicted)), list(map(Outline, truth))
        figures = np.zeros((2, count, count))
        for guess in range(count):
            for answer in range(count) if self._matched else (guess,):
                figures[:, guess, answer] = (
                    overlap(predicted[guess], truth[answer]).iou,
                    guesses[guess].accuracy(answers[answer]),
                )
        self._frames.append(figures)

    def similarities(self) -> tuple[Similarity, ...]:
        """Of each object in order; there must be a frame."""
        j, f = np.mean(self._frames, axis=0)
        guesses = assign((j + f) / 2) if self._matched else range(len(j))
        return tuple(
            Similarity(float(j[guess, answer]), float(f[guess, answer]))
            for answer, guess in enumerate(guesses)
        )


def exclusive(masks: Mask) -> Mask:
    """Masks of which no two have a pixel in common: it goes to the first; [objects, height, width].

    So masks become one picture of object numbers in VideoGLaMM's evaluation of Ref-DAVIS17.
    """
    first: Mask = masks & (np.cumsum(masks, axis=0) == 1)
    return first


def assign(worth: NDArray[np.float64]) -> tuple[int, ...]:
    """For each column of a square matrix the row that is its own, so that the sum is greatest."""
    count = len(worth)

    @cache
    def best(free: int, column: int) -> tuple[float, tuple[int, ...]]:
        if column == count:
            return 0.0, ()
        choices = []
        for row in range(count):
            if free >> row & 1:
                total, rest = best(free & ~(1 << row), column + 1)
                choices.append((total + float(worth[row, column]), (row, *rest)))
        return max(choices, key=lambda choice: choice[0])

    return best((1 << count) - 1, 0)[1]


@dataclass(frozen=True)
class VideoFigures:
    """J, F and J&F, means over objects or expressions, each with its standard error over videos."""

    j: Estimate
    f: Estimate
    j_and_f: Estimate
    expressions: int


class VideoScores:
    """Gathers what expressions got; those of one video are not independent of each other."""

    def __init__(self) -> None:
        self._sums: dict[Hashable, NDArray[np.float64]] = {}

    def add(self, video: Hashable, found: Iterable[Similarity]) -> None:
        """Note what some expressions about a video got, of one annotator or of several."""
        sums = self._sums.setdefault(video, np.zeros(3))
        for one in found:
            sums += (one.j, one.f, 1)

    def __bool__(self) -> bool:
        return any(sums[2] for sums in self._sums.values())

    def figures(self) -> VideoFigures:
        """All figures; there must be an expression."""
        parts = np.stack([sums for sums in self._sums.values() if sums[2]])
        return VideoFigures(
            j=jackknife(parts, lambda sums: sums[..., 0] / sums[..., 2]),
            f=jackknife(parts, lambda sums: sums[..., 1] / sums[..., 2]),
            j_and_f=jackknife(
                parts, lambda sums: (sums[..., 0] + sums[..., 1]) / (2 * sums[..., 2])
            ),
            expressions=int(parts[:, 2].sum()),
        )

    def relative(self, whole: "VideoScores") -> Estimate:
        """The ratio of this J&F to another one of the same expressions, such as unpruned.

        Videos are left out of both at a time, so that what makes a video hard for both is no error
        of the ratio. Raises ValueError where videos or numbers of expressions differ, or where the
        other J&F is 0.
        """
        counts = {video: sums[2] for video, sums in self._sums.items()}
        if counts != {video: sums[2] for video, sums in whole._sums.items()}:
            raise ValueError("A ratio of J&Fs needs the same expressions on both sides.")
        pairs = np.stack(
            [[sums[:2].sum(), whole._sums[video][:2].sum()] for video, sums in self._sums.items()]
        )
        if not pairs[:, 1].any():
            raise ValueError("There is no ratio to a J&F of 0.")
        return jackknife(pairs, lambda sums: sums[..., 0] / sums[..., 1])
