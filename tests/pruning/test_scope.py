"""SCOPE, and the facility location that it shares, against a slow re-derivation."""

import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, Shape, clear_case, random_shape
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.facility import cover_step_by_step, most_covering
from vllm_litelvlm.pruning.registry import build_pruner

Matrix = NDArray[np.float64]


def cover(likeness: Matrix, worth: Matrix, count: int, calls: Calls) -> list[int]:
    """Tokens in the order of their choice; a row of ``likeness`` for each."""
    best, chosen = np.zeros(likeness.shape[1]), list[int]()
    while len(chosen) < count:
        gains = worth * np.maximum(0, likeness - best).sum(axis=1)
        gains[chosen] = -np.inf
        falling = np.argsort(-gains)
        calls.cut([float(gains[token]) for token in falling[:2]], 1)
        chosen.append(int(falling[0]))
        best = np.maximum(best, likeness[falling[0]])
    return chosen


def derive(signals: Signals, image: int, budget: int, alpha: float, calls: Calls) -> list[int]:
    """Kept patches."""
    tokens = signals.patch_tokens[image].double().numpy()
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    # Attention is near 1 over the number of patches: brought to about 1, as CLEAR has it.
    attention = signals.patches * signals[Signal.CLS_ATTENTION][image].double().numpy()
    return sorted(cover(unit @ unit.T, attention**alpha, budget, calls))


def _shape(seed: int) -> Shape:
    """Where most is covered, what is left of gains is rounding."""
    if seed % 10 == 9:
        return Shape(576, random.Random(seed).randint(1, 24), (0,))
    shape = random_shape(seed, patches=[16, 36, 49, 64, 100])
    return Shape(shape.patches, min(shape.budget, shape.patches // 3), shape.text_counts[:1])


@pytest.mark.parametrize("seed", range(50))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape, alpha = _shape(seed), random.Random(seed).choice([1.0, 1.0, 0.0, 0.5, 2.0])
    signals, expected = clear_case(
        seed, shape, 16, lambda *case: derive(*case[:2], shape.budget, alpha, case[2])
    )
    selection = build_pruner("scope", {"alpha": alpha}).select(signals, shape.budget)
    assert selection.indices.tolist() == expected
    assert not selection.guided.any()


def test_attention_decides_between_equals_and_coverage_between_others() -> None:
    # Two directions, three tokens along the first and two along the second.
    along = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2)
    signals = with_values(
        random_signals([0], patches=5, width=2),
        {
            Signal.FEATURES: torch.cat([torch.zeros(1, 2), along])[None],
            Signal.CLS_ATTENTION: torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2]]),
        },
    )
    scope = build_pruner("scope", {})
    assert scope.select(signals, 1).indices.tolist() == [[1]]
    assert scope.select(signals, 2).indices.tolist() == [[1, 3]]
    # Nothing is left to be covered: the lowest index goes first.
    assert scope.select(signals, 3).indices.tolist() == [[0, 1, 3]]


@pytest.mark.parametrize("seed", range(30))
def test_lazy_gains_choose_what_all_gains_choose(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens, covered = random.Random(seed).choices([1, 7, 64, 100, 576], k=2)
    # Eighths, of which sums are exact: many gains are equal, and many 0.
    likeness = torch.randint(-4, 9, (2, tokens, covered), generator=generator) / 8
    worth = torch.randint(0, 4, (2, tokens), generator=generator) / 4
    count = min(tokens, 100)
    found = most_covering(likeness, count, worth)
    assert torch.equal(found, cover_step_by_step(likeness, count, worth))


def test_broken_numbers_choose_each_token_once() -> None:
    likeness, worth = torch.full((1, 9, 9), torch.nan), torch.full((1, 9), torch.nan)
    assert sorted(most_covering(likeness, 9, worth)[0].tolist()) == list(range(9))
