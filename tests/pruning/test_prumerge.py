"""LLaVA-PruMerge and LLaVA-PruMerge+ against a slow re-derivation."""

import math
import random
from fractions import Fraction

import pytest
import torch

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import (
    Calls,
    Vector,
    add,
    clear_case,
    dot,
    random_shape,
    unit,
    weighted_sum,
)
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.prumerge import automatic_count
from vllm_litelvlm.pruning.registry import build_pruner

NEIGHBOURS = 32


def important(importance: Vector, count: int) -> list[int]:
    return sorted(range(len(importance)), key=lambda patch: -importance[patch])[:count]


def spread(importance: Vector, budget: int, share: float) -> list[int]:
    """The kept patches of PruMerge+, in order: important ones, and the middles of equal steps."""
    first = important(importance, math.floor((budget - 1) * share + 0.5))
    rest = [patch for patch in range(len(importance)) if patch not in first]
    count = budget - 1 - len(first)
    middles = [(number + Fraction(1, 2)) * Fraction(len(rest), count) for number in range(count)]
    return first + [rest[math.floor(middle)] for middle in middles]


def merge(signals: Signals, image: int, kept: list[int], calls: Calls) -> list[Vector]:
    """Every kept patch with its neighbours, and all that were pruned."""
    features = signals.patch_tokens[image].double().tolist()
    importance = signals[Signal.LAST_ATTENTION][image].double().tolist()
    keys = [unit(key) for key in signals[Signal.LAST_KEYS][image].double().tolist()]
    patches, width = range(len(features)), len(features[0])

    def weighted(members: list[int]) -> Vector:
        vectors = [features[member] for member in members]
        return weighted_sum(vectors, [importance[member] for member in members], width)

    tokens = []
    for center in kept:
        cosine = {other: dot(keys[center], keys[other]) for other in patches if other != center}
        nearest = sorted(cosine, key=lambda other: -cosine[other])
        calls.cut([cosine[other] for other in nearest], NEIGHBOURS)
        tokens.append(add(features[center], weighted(nearest[:NEIGHBOURS])))
    return [*tokens, weighted([patch for patch in patches if patch not in kept])]


@pytest.mark.parametrize("seed", range(60))
def test_prumerge_equals_the_re_derivation(seed: int) -> None:
    shape = random_shape(seed)

    def derive(signals: Signals, image: int, calls: Calls) -> tuple[list[int], list[Vector]]:
        importance = signals[Signal.LAST_ATTENTION][image].double().tolist()
        kept = important(importance, shape.budget - 1)
        return kept, merge(signals, image, kept, calls)

    signals, expected = clear_case(seed, shape, 8, derive)
    selection = build_pruner("prumerge", {}).select(signals, shape.budget)
    for one, (kept, tokens) in zip(selection.unbind(), expected, strict=True):
        assert one.indices.tolist() == [*kept, shape.patches]
        torch.testing.assert_close(one.tokens, torch.tensor(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(60))
def test_prumerge_plus_equals_the_re_derivation(seed: int) -> None:
    shape = random_shape(seed)
    share = random.Random(seed).choice([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])

    def derive(signals: Signals, image: int, calls: Calls) -> tuple[list[int], list[Vector]]:
        importance = signals[Signal.LAST_ATTENTION][image].double().tolist()
        kept = spread(importance, shape.budget, share)
        return kept, merge(signals, image, kept, calls)

    signals, expected = clear_case(seed, shape, 8, derive)
    selection = build_pruner("prumerge+", {"share": share}).select(signals, shape.budget)
    for one, (kept, tokens) in zip(selection.unbind(), expected, strict=True):
        assert one.indices.tolist() == [*kept, shape.patches]
        torch.testing.assert_close(one.tokens, torch.tensor(tokens), rtol=1e-5, atol=1e-5)


def _by_hand(importance: Vector, features: Vector, angles: Vector) -> Signals:
    keys = [[math.cos(angle), math.sin(angle)] for angle in angles]
    return with_values(
        random_signals([0], patches=len(importance)),
        {
            Signal.LAST_ATTENTION: torch.tensor([importance]),
            Signal.FEATURES: torch.tensor([[-7.0, *features]])[:, :, None],
            Signal.LAST_KEYS: torch.tensor([keys]) * 3,
        },
    )


def test_neighbours_are_weighted_by_importance_and_not_averaged() -> None:
    importance = [0.1, 0.4, 0.2, 0.3]
    signals = _by_hand(importance, [1.0, 2.0, 4.0, 8.0], [0.0, 1.0, 2.0, 3.0])
    [selection] = build_pruner("prumerge", {}).select(signals, 3).unbind()
    assert selection.indices.tolist() == [1, 3, 4]
    # Three other tokens are fewer than 32, so every kept one takes all others in:
    # 2 + 0.1 * 1 + 0.2 * 4 + 0.3 * 8 and 8 + 0.1 * 1 + 0.4 * 2 + 0.2 * 4; pruned: 0.1 + 0.8.
    expected = torch.tensor([[5.3], [9.7], [0.9]])
    torch.testing.assert_close(selection.tokens, expected)


def test_thirty_two_nearest_keys_are_merged_kept_ones_among_them() -> None:
    # Patch j has its key at angle j / 100. Patch 0 is the most important, then 32, then 33.
    importance = [2.0] + [0.001] * 31 + [1.0, 0.5] + [0.001] * 16
    angles = [patch / 100 for patch in range(50)]
    signals = _by_hand(importance, [1.0] * 50, angles)
    [selection] = build_pruner("prumerge", {}).select(signals, 4).unbind()
    assert selection.indices.tolist() == [0, 32, 33, 50]
    # Patch 0's nearest are 1 to 32: kept 32 counts, kept 33 is too far.
    torch.testing.assert_close(selection.tokens[0, 0], torch.tensor(1 + 31 * 0.001 + 1.0))
    torch.testing.assert_close(selection.tokens[-1, 0], torch.tensor(47 * 0.001))


def test_plus_adds_tokens_at_equal_steps_among_the_others() -> None:
    importance = [0.0] * 5 + [0.9, 0.0, 0.8] + [0.0] * 4
    signals = _by_hand(importance, [1.0] * 12, [patch / 10 for patch in range(12)])
    [selection] = build_pruner("prumerge+", {"share": 0.25}).select(signals, 8).unbind()
    # One is the sum; a quarter of the other 7 are patches 5 and 7. Five of the ten left, 0 1 2 3
    # 4 6 8 9 10 11, stand in the middles of steps of two.
    assert selection.indices.tolist() == [5, 7, 1, 3, 6, 9, 11, 12]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_plus_with_an_extreme_share_is_all_spread_or_prumerge(share: float) -> None:
    signals = random_signals([0], patches=64)
    plus = build_pruner("prumerge+", {"share": share}).select(signals, 9)
    if share == 1:
        plain = build_pruner("prumerge", {}).select(signals, 9)
        assert plus.indices.tolist() == plain.indices.tolist()
        torch.testing.assert_close(plus.tokens, plain.tokens)
    else:
        assert plus.indices.tolist() == [[4, 12, 20, 28, 36, 44, 52, 60, 64]]


def quartile(ascending: Vector, part: float) -> float:
    """A quantile, in between two entries by linear interpolation."""
    place = part * (len(ascending) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (place - below) * (ascending[above] - ascending[below])


@pytest.mark.parametrize("seed", range(50))
def test_automatic_count_is_the_number_of_outliers(seed: int) -> None:
    generator = random.Random(seed)
    patches = generator.choice([36, 50, 145, 575, 576])
    rows = [[generator.random() ** 6 for _ in range(patches)] for _ in range(3)]
    importance = torch.tensor(rows)
    expected = []
    for row in importance.double().tolist():
        first, third = quartile(sorted(row), 0.25), quartile(sorted(row), 0.75)
        bound = third + 1.5 * (third - first)
        assert min(abs(entry - bound) for entry in row) > 1e-7
        expected.append(sum(entry > bound for entry in row))
    found = automatic_count(importance)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert max(expected) > 0


def test_automatic_count_by_hand() -> None:
    # The quartiles are the third and the seventh of nine, 3 and 7, so the bound is 13.
    few = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 13.5]])
    assert automatic_count(few).tolist() == [1]
    assert automatic_count(few.clamp(max=13.0)).tolist() == [0]  # at the bound is not above it
