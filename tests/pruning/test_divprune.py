"""DivPrune against a slow re-derivation."""

import math
import random

import pytest
import torch

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, Shape, Vector, clear_case, cosines, random_shape
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner


def derive(signals: Signals, image: int, budget: int, calls: Calls) -> list[int]:
    """Kept patches."""
    tokens = signals[Signal.PROJECTED][image].double().tolist()
    patches = range(len(tokens))
    distance = [[1 - cosine for cosine in row] for row in cosines(tokens, tokens)]
    alone = [min(distance[a][b] for b in patches if b != a) for a in patches]
    chosen: list[int] = []
    nearest = alone
    while len(chosen) < budget:
        left = [patch for patch in patches if patch not in chosen]
        farthest = sorted(left, key=lambda patch, of=nearest: -of[patch])
        calls.cut([nearest[patch] for patch in farthest], 1)
        chosen.append(farthest[0])
        to_newest = distance[farthest[0]]
        nearest = to_newest if len(chosen) == 1 else list(map(min, nearest, to_newest))
    return sorted(chosen)


def _shape(seed: int) -> Shape:
    """Every step of every token is a call, so few long selections of 576 are clear."""
    if seed % 10 == 9:
        return Shape(576, random.Random(seed).randint(1, 128), (0,))
    return random_shape(seed, patches=[36, 49, 64, 81, 100])


@pytest.mark.parametrize("seed", range(50))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape = _shape(seed)
    signals, expected = clear_case(
        seed, shape, 16, lambda *case: derive(*case[:2], shape.budget, case[2])
    )
    selection = build_pruner("divprune", {}).select(signals, shape.budget)
    assert selection.indices.tolist() == expected
    assert not selection.guided.any()


def _by_hand(degrees: Vector) -> Signals:
    angles = [math.radians(degree) for degree in degrees]
    points = [[math.cos(angle), math.sin(angle)] for angle in angles]
    lengths = torch.arange(1.0, 1 + len(angles))[:, None]  # of no consequence
    return with_values(
        random_signals([0], patches=len(angles)),
        {Signal.PROJECTED: (torch.tensor(points) * lengths)[None]},
    )


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (1, [3]),  # its nearest neighbour, 30 degrees away, is the farthest
        (2, [0, 3]),  # 95 degrees away
        (3, [0, 3, 4]),  # 50 degrees from 0, 45 from 3
        (4, [0, 2, 3, 4]),  # 20 degrees from 0 and 30 from 4; 1 is 8 from 0
        (5, [0, 1, 2, 3, 4]),
    ],
)
def test_tokens_as_far_apart_as_possible_are_kept(budget: int, kept: list[int]) -> None:
    signals = _by_hand([0, 8, 20, 95, 50])
    assert build_pruner("divprune", {}).select(signals, budget).indices.tolist() == [kept]


def test_opposite_tokens_are_farther_than_orthogonal_ones() -> None:
    signals = _by_hand([0, 3, 90, 183])
    # Most alone is 183, 93 degrees from 90; the farthest from it is 3.
    assert build_pruner("divprune", {}).select(signals, 2).indices.tolist() == [[1, 3]]
