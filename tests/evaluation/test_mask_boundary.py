"""J and F against slow re-derivations and closed forms, and how videos are judged."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from vllm_litelvlm.evaluation.masks.boundary import (
    boundary,
    boundary_accuracy,
    reach,
    region_similarity,
    widen,
)
from vllm_litelvlm.evaluation.masks.judging import (
    Similarity,
    VideoJudge,
    VideoScores,
    assign,
    exclusive,
)

Mask = NDArray[np.bool_]


def slow_boundary(mask: Mask) -> set[tuple[int, int]]:
    """Pixels that differ from one to the right, below, or both, of those inside the picture."""
    height, width = mask.shape
    found = set()
    for y, x in itertools.product(range(height), range(width)):
        near = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        if any(a < height and b < width and mask[a, b] != mask[y, x] for a, b in near):
            found.add((y, x))
    return found


def slow_accuracy(predicted: Mask, truth: Mask, tolerance: float) -> float:
    height, width = predicted.shape
    radius = math.ceil(tolerance * math.sqrt(height**2 + width**2))
    one, other = slow_boundary(predicted), slow_boundary(truth)
    if not one or not other:
        return 1.0 if one == other else 0.0

    def share(some: set[tuple[int, int]], others: set[tuple[int, int]]) -> float:
        close = [
            any((y - v) ** 2 + (x - u) ** 2 <= radius * radius for v, u in others) for y, x in some
        ]
        return sum(close) / len(close)

    precision, recall = share(one, other), share(other, one)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(random: np.random.Generator, height: int, width: int) -> Mask:
    mask = np.zeros((height, width), bool)
    for _ in range(3):
        y, x = random.integers(-4, height), random.integers(-4, width)
        mask[max(y, 0) : y + random.integers(1, 14), max(x, 0) : x + random.integers(1, 14)] = True
    return mask ^ (random.random((height, width)) < random.choice([0, 0.02]))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (17, 23), (31, 20), (24, 24)])
@pytest.mark.parametrize("tolerance", [0.008, 0.1])
def test_accuracy_is_that_of_a_slow_rederivation(size: tuple[int, int], tolerance: float) -> None:
    random = np.random.default_rng(size[0] * 100 + size[1])
    for _ in range(6):
        predicted, truth = blobs(random, *size), blobs(random, *size)
        assert {tuple(at) for at in np.argwhere(boundary(truth)).tolist()} == slow_boundary(truth)
        expected = slow_accuracy(predicted, truth, tolerance)
        assert boundary_accuracy(predicted, truth, tolerance) == pytest.approx(expected)


def test_last_pixel_is_never_boundary_and_the_rim_is_none() -> None:
    assert not boundary(np.ones((5, 6), bool)).any()
    corner = np.zeros((5, 6), bool)
    corner[-1, -1] = True
    assert np.argwhere(boundary(corner)).tolist() == [[3, 4], [3, 5], [4, 4]]


def square(side: int, left: int, height: int = 96, width: int = 160, top: int = 20) -> Mask:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_boundary_of_a_square_is_a_ring_of_four_sides() -> None:
    line = boundary(square(30, 40))
    assert np.count_nonzero(line) == 4 * 30
    ring = square(31, 39, top=19) & ~square(29, 40)
    assert np.array_equal(line, ring)


def test_tolerance_is_rounded_up_from_the_diagonal() -> None:
    assert reach(96, 160) == 2  # 0.008 * 186.6 = 1.49
    assert reach(480, 854) == 8  # 7.84
    assert reach(3, 4, 0.2) == 1
    disk = widen(square(1, 50), 2)
    assert np.count_nonzero(disk) == 13
    assert np.count_nonzero(widen(square(1, 0, top=0), 2)) == 6


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_square_that_is_off_by_no_more_than_the_tolerance_is_right(shift: int) -> None:
    predicted, truth = square(30, 40 + shift), square(30, 40)
    assert boundary_accuracy(predicted, truth) == 1
    assert region_similarity(predicted, truth) == pytest.approx((30 - shift) / (30 + shift))


@pytest.mark.parametrize("shift", [3, 5, 12])
def test_accuracy_of_a_shifted_square_has_a_closed_form(shift: int) -> None:
    # Both horizontal sides agree along side + 1 - shift pixels and the reach beyond, and the reach
    # of the vertical side inside is near them.
    side, radius = 30, 2
    matched = 2 * (side + 1 - shift + radius) + 2 * radius
    found = boundary_accuracy(square(side, 40 + shift), square(side, 40))
    assert found == pytest.approx(matched / (4 * side))


def disc(radius: float, height: int = 120, width: int = 160) -> Mask:
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - 60, x - 80) <= radius


def test_discs_agree_within_the_tolerance_and_not_beyond() -> None:
    # The diagonal is 200, so the reach 2 pixels.
    assert boundary_accuracy(disc(41), disc(40)) == 1
    assert boundary_accuracy(disc(45), disc(40)) == 0
    assert region_similarity(disc(45), disc(40)) == pytest.approx(40**2 / 45**2, abs=0.01)


def test_empty_masks_agree_with_empty_ones_only() -> None:
    empty, some = np.zeros((9, 12), bool), square(4, 3, 9, 12, top=2)
    for measure in (region_similarity, boundary_accuracy):
        assert measure(empty, empty) == 1
        assert measure(some, empty) == measure(empty, some) == 0
        assert measure(some, some) == 1
    # A mask of everything has no boundary.
    assert boundary_accuracy(~empty, empty) == 1
    with pytest.raises(ValueError, match="resize"):
        boundary_accuracy(empty, empty.T)


def test_video_is_the_mean_over_frames_of_each_object() -> None:
    judge = VideoJudge()
    whole, none, half = square(30, 40), square(0, 0), square(30, 55)
    judge.add(np.stack([whole, none]), np.stack([whole, whole]))
    judge.add(np.stack([half, none]), np.stack([whole, none]))
    one, other = judge.similarities()
    assert one.j == pytest.approx((1 + 15 / 45) / 2)
    assert one.f == pytest.approx((1 + boundary_accuracy(half, whole)) / 2)
    assert other == Similarity(0.5, 0.5)
    assert one.j_and_f == pytest.approx((one.j + one.f) / 2)
    with pytest.raises(ValueError, match="has 1 masks and the first had 2"):
        judge.add(whole[None], whole[None])


def test_pixels_that_do_not_count_are_no_fault() -> None:
    predicted, truth, void = square(30, 60), square(30, 40), np.zeros((96, 160), bool)
    void[:, 60:] = True
    judge = VideoJudge()
    judge.add(predicted[None], truth[None], void)
    [found] = judge.similarities()
    assert (found.j, found.f) == (0, 0)
    judge = VideoJudge()
    judge.add((square(30, 40) | square(30, 100))[None], truth[None], square(36, 97, top=17))
    assert judge.similarities() == (Similarity(1, 1),)


def test_matched_predictions_may_come_in_any_order() -> None:
    left, right = square(20, 20), square(20, 100)
    named, matched = VideoJudge(), VideoJudge(matched=True)
    for judge in (named, matched):
        judge.add(np.stack([right, left]), np.stack([left, right]))
    assert named.similarities() == (Similarity(0, 0),) * 2
    assert matched.similarities() == (Similarity(1, 1),) * 2


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_assignment_is_the_best_of_all(count: int) -> None:
    for seed in range(5):
        worth = np.random.default_rng(seed).random((count, count))
        totals = [
            sum(worth[row, column] for column, row in enumerate(rows))
            for rows in itertools.permutations(range(count))
        ]
        rows = assign(worth)
        assert sorted(rows) == list(range(count))
        assert sum(worth[row, column] for column, row in enumerate(rows)) == max(totals)


def test_pixel_of_several_masks_is_the_firsts() -> None:
    masks = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[1, 1, 1, 1]]], bool)
    assert exclusive(masks).astype(int).tolist() == [[[1, 1, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 1]]]


def test_figures_of_videos_are_means_over_expressions_with_errors_over_videos() -> None:
    scores = VideoScores()
    assert not scores
    scores.add("a", [Similarity(0.5, 0.7), Similarity(0.1, 0.3)])
    scores.add("b", [Similarity(0.9, 0.5)])
    scores.add("a", [Similarity(0.5, 0.5)])
    scores.add("c", [])
    figures = scores.figures()
    assert figures.j.mean == pytest.approx(0.5)
    assert figures.f.mean == pytest.approx(0.5)
    assert figures.j_and_f.mean == pytest.approx(0.5)
    assert figures.expressions == 4
    assert figures.j.images == 2
    # Without "a" J is 0.9, without "b" 1.1 / 3.
    assert figures.j.standard_error == pytest.approx(abs(0.9 - 1.1 / 3) / 2)
