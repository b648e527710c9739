"""MMTok against a slow re-derivation."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, Shape, clear_case, random_shape
from tests.pruning.test_scope import Matrix, cover
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner


def softmax(rows: Matrix) -> Matrix:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def derive(
    signals: Signals,
    image: int,
    budget: int,
    options: tuple[float, float, float],
    calls: Calls,
) -> list[int]:
    """Kept patches."""
    of_text, of_image, weight = options
    tokens = signals.patch_tokens[image].double().numpy()
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    covered = [weight * softmax(unit @ unit.T / of_image) / signals.patches]
    if words := signals.word_counts[image]:
        cosines = signals[Signal.WORD_COSINE][image, :words].double().numpy()
        covered.append(softmax(cosines / of_text) / words)
    # Shares are about 1 over the number of patches: brought to about 1, as CLEAR has it.
    likeness = signals.patches * np.concatenate(covered).T
    return sorted(cover(likeness, np.ones(signals.patches), budget, calls))


@pytest.mark.parametrize("seed", range(50))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape = random_shape(seed)
    # Late gains are small, and lost in the rounding of sums.
    budget = min(shape.budget, max(1, shape.patches // 3), 40)
    shape = Shape(shape.patches, budget, shape.text_counts)
    options = random.Random(seed).choice([(0.02, 0.2, 0.5), (0.01, 0.2, 0.5), (0.3, 0.1, 2.0)])
    signals, expected = clear_case(
        seed, shape, 8, lambda *case: derive(*case[:2], shape.budget, options, case[2])
    )
    names = ("text_temperature", "image_temperature", "image")
    pruner = build_pruner("mmtok", dict(zip(names, options, strict=True)))
    selection = pruner.select(signals, shape.budget)
    assert selection.indices.tolist() == expected
    has_text = torch.tensor([count > 0 for count in shape.text_counts])[:, None]
    assert torch.equal(selection.guided, has_text.expand_as(selection.guided))


def test_each_word_has_its_patch() -> None:
    signals = random_signals([1], patches=64)
    words = torch.zeros(1, 2, 64)
    words[0, 0, 17] = words[0, 1, 42] = 1.0
    signals = replace(with_values(signals, {Signal.WORD_COSINE: words}), word_counts=[2])
    kept = build_pruner("mmtok", {}).select(signals, 2).indices
    assert kept.tolist() == [[17, 42]]


def test_one_word_beside_an_image_without_words_is_not_its_word() -> None:
    signals = random_signals([0, 1], patches=64)
    pruner = build_pruner("mmtok", {})
    together, [alone] = pruner.select(signals, 8), pruner.select(signals.rows([0]), 8).unbind()
    assert signals.word_counts == [0, 1]
    assert torch.equal(together.indices[0], alone.indices)
