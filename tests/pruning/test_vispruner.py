"""VisPruner against a slow re-derivation."""

import math
import random

import pytest
import torch
from torch import Tensor

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import (
    Calls,
    Shape,
    Vector,
    clear_case,
    dot,
    random_shape,
    unit,
)
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner

PER_ROUND = 8


def thin_out(rest: list[int], units: list[Vector], count: int, calls: Calls) -> list[int]:
    """Drop of ``rest`` until ``count`` are left; patches in the order of the last round."""
    while len(rest) > count:
        even, odd = rest[0::2], rest[1::2]
        nearest = {e: max(dot(units[e], units[o]) for o in odd) for e in even}
        falling = sorted(even, key=lambda e, of=nearest: -of[e])
        calls.order([nearest[e] for e in falling])
        drop = min(PER_ROUND, len(rest) - count, len(even))
        rest = falling[drop:] + odd
    return rest


def derive(signals: Signals, image: int, budget: int, share: float, calls: Calls) -> list[int]:
    """Kept patches."""
    attention = signals[Signal.CLS_ATTENTION][image].double().tolist()
    units = [unit(token) for token in signals.patch_tokens[image].double().tolist()]
    falling = sorted(range(len(attention)), key=lambda patch: -attention[patch])
    important = math.floor(budget * share)
    kept, rest = falling[:important], falling[important:]
    if budget > important:
        kept = kept + thin_out(rest, units, budget - important, calls)
    return sorted(kept)


def _shape(seed: int) -> Shape:
    """Every place of every round matters, so few rounds of 576 tokens are clear."""
    shape = random_shape(seed, patches=[36, 49, 64, 81, 100])
    if seed % 10 == 9:
        return Shape(576, 576 - random.Random(seed).randint(1, 20), (0,))
    return shape


@pytest.mark.parametrize("seed", range(60))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape, share = _shape(seed), random.Random(seed).choice([0.5, 0.5, 0.0, 0.25, 0.8, 1.0])
    signals, expected = clear_case(
        seed, shape, 8, lambda *case: derive(*case[:2], shape.budget, share, case[2])
    )
    selection = build_pruner("vispruner", {"share": share}).select(signals, shape.budget)
    assert selection.indices.tolist() == expected
    assert not selection.guided.any()


def _exact_features(images: int, patches: int, seed: int) -> Tensor:
    """Vectors of length 1 whose cosines float32 computes without rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (images, 1 + patches, 16), generator=generator) / 2 - 0.25


@pytest.mark.parametrize("budget", [1, 2, 64, 128, 192, 400])
def test_many_rounds_equal_the_re_derivation_with_ties_to_the_earlier_place(budget: int) -> None:
    features = {Signal.FEATURES: _exact_features(1, 576, budget)}
    signals = with_values(random_signals([0], seed=budget), features)
    [selection] = build_pruner("vispruner", {}).select(signals, budget).unbind()
    assert selection.indices.tolist() == derive(signals, 0, budget, 0.5, Calls())


def _by_hand(attention: Vector, degrees: Vector) -> Signals:
    angles = [math.radians(degree) for degree in degrees]
    points = [[0.0, 0.0], *([math.cos(angle), math.sin(angle)] for angle in angles)]
    return with_values(
        random_signals([0], patches=len(attention)),
        {
            Signal.CLS_ATTENTION: torch.tensor([attention]),
            Signal.FEATURES: torch.tensor([points]) * 2,
        },
    )


def test_even_tokens_most_similar_to_an_odd_one_go() -> None:
    # By falling attention: 3 0 2 1 4 5. Half of 4: patches 3 and 0 are important. Rest: 2 1 4 5,
    # even 2 (10 degrees from 1) and 4 (5 degrees from 1), odd 1 and 5. Both even ones have to go.
    attention = [0.5, 0.3, 0.4, 0.6, 0.2, 0.1]
    signals = _by_hand(attention, [0, 30, 40, 0, 25, 120])
    selection = build_pruner("vispruner", {}).select(signals, 4)
    assert selection.indices.tolist() == [[0, 1, 3, 5]]
    # Of 5 the important are 3 and 0 too; only the closest even one goes, which is 4.
    selection = build_pruner("vispruner", {}).select(signals, 5)
    assert selection.indices.tolist() == [[0, 1, 2, 3, 5]]


def test_odd_number_of_tokens_has_one_more_at_even_places() -> None:
    # Rest, by falling attention: 0 1 2 with odd 1. Two of three even places go, leaving 1.
    signals = _by_hand([0.3, 0.2, 0.1], [0, 10, 90])
    selection = build_pruner("vispruner", {"share": 0.0}).select(signals, 1)
    assert selection.indices.tolist() == [[1]]
    selection = build_pruner("vispruner", {"share": 0.0}).select(signals, 2)
    assert selection.indices.tolist() == [[1, 2]]  # 0 is nearer to 1 than 2 is


def test_important_part_is_rounded_down() -> None:
    # Half of 3 is 1: patch 0. Rest 1 2 3, of which two stay: 1 is near to 2 and 3 is not.
    signals = _by_hand([0.4, 0.3, 0.2, 0.1], [0, 20, 25, 150])
    assert build_pruner("vispruner", {}).select(signals, 3).indices.tolist() == [[0, 2, 3]]
