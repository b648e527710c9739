"""Nüwa's first stage against a slow re-derivation."""

import math
import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, clear_case, random_shape
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner

Rows = NDArray[np.float64]


def derive(
    signals: Signals, image: int, budget: int, options: tuple[float, float], calls: Calls
) -> tuple[list[int], Rows]:
    """Kept patches, and what becomes of them."""
    untouched, reach = options
    attention = signals[Signal.CLS_ATTENTION][image].double().numpy() * signals.patches
    tokens = signals.patch_tokens[image].double().numpy()
    places = [divmod(patch, signals.columns) for patch in range(signals.patches)]
    regions: dict[tuple[int, int], list[int]] = {}
    for patch, (row, column) in enumerate(places):
        regions.setdefault((row // 2, column // 2), []).append(patch)
    each = math.ceil(4 * budget / signals.patches)
    candidates, others = [], []
    for patches in regions.values():
        falling = sorted(patches, key=lambda patch: -attention[patch])
        calls.cut([attention[patch] for patch in falling], each)
        candidates += falling[:each]
        others += falling[each:]
    falling = sorted(candidates, key=lambda patch: -attention[patch])
    falling += sorted(others, key=lambda patch: -attention[patch])
    if budget <= len(candidates):
        calls.cut([attention[patch] for patch in falling[: len(candidates)]], budget)
    else:
        rest = falling[len(candidates) :]
        calls.cut([attention[patch] for patch in rest], budget - len(candidates))
    kept = sorted(falling[:budget])
    bound = np.quantile(attention[kept], untouched)
    # At a quantile between two tokens, neither is near it; at one of them, the same is compared.
    rows = []
    for patch in kept:
        if attention[patch] >= bound - 1e-9:
            rows.append(tokens[patch])
            continue
        weights = []
        for other, token in enumerate(tokens):
            far = math.dist(places[patch], places[other])
            lengths = np.linalg.norm(tokens[patch]) * np.linalg.norm(token)
            cosine = float(tokens[patch] @ token / lengths)
            weights.append(max(0.0, cosine) * max(0.0, 1 - far / reach))
        shares = np.array(weights) / (sum(weights) + 1e-8)
        shares[patch] = 1
        rows.append(shares @ tokens)
    return kept, np.array(rows)


@pytest.mark.parametrize("seed", range(50))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape = random_shape(seed, patches=[5, 16, 36, 49, 64])
    options = random.Random(seed).choice([(0.55, 280**0.5), (0.55, 2.5), (0.0, 3.0), (1.0, 6.0)])
    signals, expected = clear_case(
        seed, shape, 8, lambda *case: derive(*case[:2], shape.budget, options, case[2])
    )
    pruner = build_pruner("nuwa", {"untouched": options[0], "reach": options[1]})
    selection = pruner.select(signals, shape.budget)
    for image, (kept, rows) in enumerate(expected):
        assert selection.indices[image].tolist() == kept
        found = selection.tokens[image].double().numpy()
        np.testing.assert_allclose(found, rows, rtol=0, atol=1e-4)
    assert not selection.guided.any()


def test_planes_have_regions_and_neighbours_of_their_own() -> None:
    plane = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    points = torch.cat(
        [torch.cat([plane, torch.full((16, 1), float(number))], dim=1) for number in range(2)]
    )
    one = random_signals([0], patches=16)
    two = with_values(
        random_signals([0], patches=32),
        {
            Signal.CLS_ATTENTION: one[Signal.CLS_ATTENTION].repeat(1, 2),
            Signal.FEATURES: torch.cat([one[Signal.FEATURES], one.patch_tokens], dim=1),
        },
    )
    two = Signals(**{**vars(two), "points": points})
    pruner = build_pruner("nuwa", {"untouched": 1.0})
    alone, both = pruner.select(one, 4), pruner.select(two, 8)
    assert both.indices[0].tolist() == [*alone.indices[0].tolist(), *(alone.indices[0] + 16)]
    torch.testing.assert_close(both.tokens[0, :4], alone.tokens[0])
