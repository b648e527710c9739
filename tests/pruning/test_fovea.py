"""Fovea against a slow, obvious re-derivation from its description."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, Vector, clear_case, random_shape
from vllm_litelvlm.pruning.base import Selection, Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner


def from_0_to_1(scores: Vector) -> Vector:
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 0.0 for score in scores]


def weigh(
    texts: Sequence[Vector], context: Vector, sign: int, strength: float, context_strength: float
) -> tuple[Vector, Vector]:
    """The text score v and the weights."""
    wanted = [0.0] * len(context)
    if texts:
        wanted = from_0_to_1(
            [max(sign * score for score in scores) for scores in zip(*texts, strict=True)]
        )
    pairs = zip(wanted, from_0_to_1(context), strict=True)
    return wanted, [1 + strength * v + context_strength * c for v, c in pairs]


def spread(
    weights: Vector, budget: int, base: Sequence[int], calls: Calls, columns: int | None = None
) -> list[int]:
    """Patches in the order of their choice, of a square grid or one of so many columns."""
    side = columns or math.isqrt(len(weights))
    chosen = list(base)

    def apart(one: int, other: int) -> int:
        return (one // side - other // side) ** 2 + (one % side - other % side) ** 2

    left = {
        patch: min((apart(patch, other) for other in base), default=1)
        for patch in range(len(weights))
        if patch not in base
    }
    for _ in range(budget):
        falling = sorted(left, key=lambda patch: (-weights[patch] * left[patch], patch))
        scores = [weights[patch] * left[patch] for patch in falling[:2]]
        if len(scores) > 1 and scores[0] != scores[1]:
            calls.note(1, scores[1] / scores[0])
        newest = falling[0]
        del left[newest]
        first = not chosen
        chosen.append(newest)
        left = {
            patch: apart(patch, newest) if first else min(gap, apart(patch, newest))
            for patch, gap in left.items()
        }
    return chosen[len(base) :]


Kept = tuple[list[int], list[bool]]


def derive(
    signals: Signals,
    image: int,
    options: dict[str, Any],
    budget: int,
    base: Sequence[int],
    calls: Calls,
    strength: float,
) -> Kept:
    """Kept patches and which of them are guided."""
    value = options.get("guidance", "value") == "value"
    texts = signals[Signal.VALUE if value else Signal.SIMILARITY][image].double().tolist()
    high = (options.get("direction") or ("high" if value else "low")) == "high"
    wanted, weights = weigh(
        texts[: signals.text_counts[image]],
        signals[Signal.CONTEXT][image].double().tolist(),
        1 if high else -1,
        strength,
        options.get("context", 4),
    )
    kept = sorted(spread(weights, budget, base, calls, signals.row_length))
    mean = math.fsum(wanted) / len(wanted)
    if strength and any(wanted):
        for patch in kept:
            calls.note(abs(wanted[patch] - mean), 0)
    return kept, [strength > 0 and wanted[patch] > mean for patch in kept]


def _options(seed: int) -> dict[str, Any]:
    generator = random.Random(f"options {seed}")
    drawn: dict[str, Any] = {
        "guidance": generator.choice(["value", "similarity"]),
        "direction": generator.choice([None, None, "low", "high"]),
        "text": generator.choice([8.0, 1.0, 0.0, 20.5]),
        "context": generator.choice([4.0, 0.0, 2.5]),
        "focus_text": generator.choice([32.0, 0.0, 5.5]),
    }
    return {} if seed < 5 else drawn


def _as_lists(selection: Selection) -> list[Kept]:
    return list(zip(selection.indices.tolist(), selection.guided.tolist(), strict=True))


def _mask(bases: Sequence[Sequence[int]], patches: int) -> Tensor:
    mask = torch.zeros(len(bases), patches, dtype=torch.bool)
    for row, base in zip(mask, bases, strict=True):
        row[list(base)] = True
    return mask


@pytest.mark.parametrize("seed", range(50))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape, options = random_shape(seed), _options(seed)
    strength = options.get("text", 8)
    signals, expected = clear_case(
        seed,
        shape,
        4,
        lambda *case: derive(*case[:2], options, shape.budget, [], case[2], strength),
    )
    selection = build_pruner("fovea", options).select(signals, shape.budget)
    assert _as_lists(selection) == expected


@pytest.mark.parametrize("seed", range(50))
def test_layers_equal_the_re_derivation(seed: int) -> None:
    shape, options = random_shape(seed), _options(seed)
    draw = random.Random(f"layers {seed}")
    budget = draw.randint(1, shape.patches - 1)
    focus = draw.randint(1, shape.patches - budget)
    strength = options.get("focus_text", 32)

    def layers(signals: Signals, image: int, calls: Calls) -> tuple[list[int], Kept]:
        base, _ = derive(signals, image, options, budget, [], calls, strength=0)
        return base, derive(signals, image, options, focus, base, calls, strength)

    signals, expected = clear_case(seed, shape, 4, layers)
    pruner = build_pruner("fovea", options)
    bases, focuses = zip(*expected, strict=True)
    mask = _mask(bases, shape.patches)
    assert torch.equal(pruner.choose_base(signals, budget), mask)
    assert _as_lists(pruner.choose_focus(signals, mask, focus)) == list(focuses)


@pytest.mark.parametrize("seed", range(10))
def test_focus_goes_on_from_any_base(seed: int) -> None:
    """A base that another method might have chosen, of another size in every image."""
    draw = random.Random(seed)
    text_counts = [draw.randint(0, 4) for _ in range(3)]
    bases = [draw.sample(range(100), draw.randint(0, 60)) for _ in text_counts]
    calls, signals = Calls(), random_signals(text_counts, patches=100, seed=seed)
    expected = [
        derive(signals, image, {}, 40, base, calls, strength=32) for image, base in enumerate(bases)
    ]
    selection = build_pruner("fovea", {}).choose_focus(signals, _mask(bases, 100), 40)
    assert _as_lists(selection) == expected


def test_tokens_are_denser_where_the_text_points() -> None:
    signals = random_signals([1], patches=576)
    left = torch.arange(576) % 24 < 12
    signals = with_values(
        signals,
        {Signal.VALUE: left.float().expand(1, 1, -1), Signal.CONTEXT: torch.ones(1, 576)},
    )
    kept = build_pruner("fovea", {}).select(signals, 100)
    there = left[kept.indices]
    assert 70 <= there.sum() <= 95  # yet the other half is covered too
    assert torch.equal(kept.guided, there)


def test_score_that_is_the_same_everywhere_counts_for_nothing() -> None:
    signals = random_signals([2], patches=100)
    flat = with_values(signals, {Signal.VALUE: torch.full((1, 2, 100), 7.0)})
    pruner, untexted = build_pruner("fovea", {}), build_pruner("fovea", {"text": 0})
    found = pruner.select(flat, 30)
    assert torch.equal(found.indices, untexted.select(signals, 30).indices)
    assert not found.guided.any()
