"""CDPruner against a slow re-derivation: determinants of every candidate set."""

import math
import random

import numpy as np
import pytest
import torch

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, Shape, Vector, clear_case, cosines, random_shape
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner

#: Keeps the least relevant token's weight above 0.
LEAST = 1e-6


def relevance(texts: list[Vector], patches: int) -> Vector:
    """Every patch's, from its cosine to each text; without a text all are alike."""
    if not texts:
        return [1.0] * patches
    mean = [-math.fsum(patch) / len(texts) for patch in zip(*texts, strict=True)]
    lowest, highest = min(mean), max(mean)
    return [(entry - lowest + LEAST) / (highest - lowest) for entry in mean]


def derive(signals: Signals, image: int, budget: int, calls: Calls) -> list[int]:
    """Kept patches."""
    texts = signals.text_counts[image]
    tokens = signals[Signal.PROJECTED][image].double().tolist()
    weights = relevance(signals[Signal.COSINE][image, :texts].double().tolist(), len(tokens))
    kernel = np.array(
        [
            [a * cosine * b for cosine, b in zip(row, weights, strict=True)]
            for row, a in zip(cosines(tokens, tokens), weights, strict=True)
        ]
    )
    chosen: list[int] = []
    volume = 1.0
    while len(chosen) < budget:
        candidates = [patch for patch in range(len(tokens)) if patch not in chosen]
        sets = np.array([[*chosen, patch] for patch in candidates])
        volumes = np.linalg.det(kernel[sets[:, :, None], sets[:, None, :]])
        gains = {patch: new / volume for patch, new in zip(candidates, volumes, strict=True)}
        falling = sorted(candidates, key=lambda patch, of=gains: -of[patch])
        if texts or chosen:
            calls.cut([gains[patch] for patch in falling], 1)
        else:
            falling = candidates  # all are alike, and ties go to the lower patch
        chosen.append(falling[0])
        volume *= gains[falling[0]]
    return sorted(chosen)


def _assert_parity(seed: int, shape: Shape) -> None:
    signals, expected = clear_case(
        seed, shape, 32, lambda *case: derive(*case[:2], shape.budget, case[2])
    )
    selection = build_pruner("cdpruner", {}).select(signals, shape.budget)
    assert selection.indices.tolist() == expected
    for one, texts in zip(selection.unbind(), shape.text_counts, strict=True):
        assert one.guided.tolist() == [texts > 0] * shape.budget


@pytest.mark.parametrize("seed", range(50))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape = random_shape(seed, least_texts=1, patches=[36, 49, 64, 81])
    # A budget that the kernel's rank allows, so that every gain is well above rounding.
    budget = random.Random(seed).randint(1, 20)
    small = Shape(shape.patches, budget, shape.text_counts)
    _assert_parity(seed, Shape(576, 24, (2,)) if seed % 25 == 24 else small)


@pytest.mark.parametrize("seed", range(12))
def test_selection_without_a_text_equals_the_re_derivation(seed: int) -> None:
    _assert_parity(seed, Shape(64, 1 + 2 * seed, (0, 2, 0)))


def _kept(projected: list[Vector], cosine: list[Vector], budget: int) -> list[int]:
    patches = len(projected)
    signals = with_values(
        random_signals([len(cosine)], patches=patches),
        {
            Signal.PROJECTED: torch.tensor([projected]),
            Signal.COSINE: torch.tensor(cosine).reshape(1, len(cosine), patches),
        },
    )
    [selection] = build_pruner("cdpruner", {}).select(signals, budget).unbind()
    return list(selection.indices.tolist())


X, Y, Z = [2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]


def test_least_similar_to_the_text_comes_first() -> None:
    assert _kept([X, Y, Z], [[0.3, 0.1, 0.2]], 1) == [1]
    assert _kept([X, Y, Z], [[0.3, 0.1, 0.2]], 2) == [1, 2]


def test_relevant_token_that_repeats_a_kept_one_waits() -> None:
    # Relevance 1, 0.9, 0.5 and about 0: 1 is the same direction as 0.
    assert _kept([X, X, Y, Z], [[0.0, 0.1, 0.5, 1.0]], 2) == [0, 2]


def test_several_texts_are_averaged_before_the_stretch() -> None:
    # Means: 0.4, 0.35 and 0.5.
    first, second = [0.0, 0.3, 0.9], [0.8, 0.4, 0.1]
    assert _kept([X, Y, Z], [first, second], 1) == [1]


def test_tokens_beyond_the_rank_of_the_kernel_are_taken_by_relevance() -> None:
    projected = [X, Y, X, Y, X, Y]
    cosine = [[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]]
    assert _kept(projected, cosine, 2) == [0, 1]
    assert _kept(projected, cosine, 4) == [0, 1, 2, 3]
    backwards = [[0.5, 0.4, 0.3, 0.2, 0.1, 0.0]]
    assert _kept(projected, backwards, 3) == [3, 4, 5]


def test_no_text_leaves_diversity_alone() -> None:
    assert _kept([X, X, Y, X], [], 2) == [0, 2]


def test_every_image_is_stretched_by_itself() -> None:
    signals = random_signals([1, 1], patches=36, width=32)
    wide = signals[Signal.COSINE].clone()
    wide[1] *= 100
    together = build_pruner("cdpruner", {}).select(with_values(signals, {Signal.COSINE: wide}), 9)
    apart = build_pruner("cdpruner", {}).select(signals, 9)
    assert together.indices[0].tolist() == apart.indices[0].tolist()
    assert together.indices[1].tolist() == apart.indices[1].tolist()  # only the scale differs
