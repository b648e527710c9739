"""EADP, and the relevance that it goes by, against slow re-derivations."""

import math
import random

import numpy as np
import pytest
import torch

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, Shape, clear_case, random_shape
from tests.pruning.test_scope import Matrix, cover
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner
from vllm_litelvlm.pruning.sharpest import mix, token_cosine_score


def mirrored(place: int, size: int) -> int:
    return abs(place) if place < size else 2 * (size - 1) - place


def smooth(scores: Matrix, rows: int, columns: int) -> Matrix:
    """In a window of 3 x 3, mirrored at the edge; no kernel's sum, which changes nothing."""
    grid, found = scores.reshape(rows, columns), np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            for down in (-1, 0, 1):
                for across in (-1, 0, 1):
                    there = mirrored(row + down, rows), mirrored(column + across, columns)
                    found[row, column] += math.exp(-(down**2 + across**2) / 2) * grid[there]
    return found.reshape(-1)


def derive(signals: Signals, image: int, budget: int, power: float, calls: Calls) -> list[int]:
    """Kept patches."""
    tokens = signals[Signal.PROJECTED][image].double().numpy()
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    relevance = np.ones(signals.patches)
    if texts := signals.text_counts[image]:
        score = -signals[Signal.TOKEN_COSINE][image, :texts].double().numpy().sum(axis=0)
        relevance = smooth(
            score - score.min() + 1e-6, signals.patches // signals.columns, signals.columns
        )
        relevance = (relevance / relevance.max()) ** power
    likeness = (unit @ unit.T + 1) * relevance / signals.patches
    return sorted(cover(likeness, np.ones(signals.patches), budget, calls))


@pytest.mark.parametrize("seed", range(50))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape = random_shape(seed)
    # Late gains are small, and lost in the rounding of sums.
    budget = min(shape.budget, max(1, shape.patches // 6), 20)
    shape = Shape(shape.patches, budget, shape.text_counts)
    power = random.Random(seed).choice([1.0, 1.0, 2.0, 0.5])
    signals, expected = clear_case(
        seed, shape, 8, lambda *case: derive(*case[:2], shape.budget, power, case[2])
    )
    selection = build_pruner("eadp", {"power": power}).select(signals, shape.budget)
    assert selection.indices.tolist() == expected
    has_text = torch.tensor([count > 0 for count in shape.text_counts])[:, None]
    assert torch.equal(selection.guided, has_text.expand_as(selection.guided))


def test_planes_are_smoothed_each_by_itself() -> None:
    plane = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    points = torch.cat(
        [torch.cat([plane, torch.full((16, 1), float(number))], dim=1) for number in range(2)]
    )
    signals = random_signals([1], patches=32)
    scores = torch.zeros(1, 1, 32)
    scores[0, 0, 15] = -1.0  # the last of its plane, beside the first of the next by number
    equal = torch.ones_like(signals[Signal.PROJECTED])
    signals = with_values(signals, {Signal.TOKEN_COSINE: scores, Signal.PROJECTED: equal})
    signals = Signals(**{**vars(signals), "points": points})
    relevance = build_pruner("eadp", {})._relevance(signals)[0]  # type: ignore[attr-defined]
    assert [patch for patch in range(32) if relevance[patch] > 1e-3] == [10, 11, 14, 15]


def sharpest(cosines: Matrix, own: list[bool], calls: Calls) -> Matrix:
    """Of one text: a row for the whole, then one a token."""
    entropies = []
    for row in cosines[1:]:
        powers = np.exp(-100 * (row - row.min()))
        shares = powers / powers.sum()
        entropies.append(-float(sum(share * math.log(share) for share in shares if share > 0)))
    rising = sorted(
        (number for number, mine in enumerate(own) if mine), key=lambda number: entropies[number]
    )
    most = max(1, int(0.2 * sum(own)))
    calls.cut([-entropies[number] for number in rising], most)
    weights = [math.exp(-100 * (entropies[number] - entropies[rising[0]])) for number in rising]
    total = sum(weights[:most])
    pairs = zip(rising[:most], weights, strict=False)
    mean = sum(weight / total * cosines[1 + number] for number, weight in pairs)
    return (cosines[0] + mean) / 2


@pytest.mark.parametrize("seed", range(50))
def test_relevance_equals_the_re_derivation(seed: int) -> None:
    generator = random.Random(seed)
    tokens, patches = generator.choice([1, 2, 5, 12, 30, 77]), generator.choice([4, 9, 64])
    torch.manual_seed(seed)
    cosines = 0.02 * torch.randn(3, 1 + tokens, patches)
    own = torch.rand(3, tokens) < 0.7
    own[:, generator.randrange(tokens)] = True
    calls = Calls()
    expected = [
        sharpest(cosines[pair].double().numpy(), own[pair].tolist(), calls) for pair in range(3)
    ]
    assert calls.closest > 1e-5
    found = mix(cosines, own).double()
    torch.testing.assert_close(found, torch.tensor(np.array(expected)), rtol=0, atol=1e-5)


def test_relevance_is_of_cosines() -> None:
    torch.manual_seed(0)
    patches, tokens = torch.randn(2, 9, 6), torch.randn(2, 5, 6)
    own = torch.ones(2, 4, dtype=torch.bool)
    cosines = torch.nn.functional.cosine_similarity(tokens[:, :, None], patches[:, None], dim=-1)
    found = token_cosine_score(3 * patches, 0.1 * tokens, own)
    torch.testing.assert_close(found, mix(cosines, own))
