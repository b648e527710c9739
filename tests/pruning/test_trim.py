"""TRIM against a slow re-derivation."""

import math
from typing import Literal

import pytest
import torch

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, Vector, clear_case, random_shape, weighted_sum
from vllm_litelvlm.pruning.base import Selection, Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner


def softmax(logits: Vector) -> Vector:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def derive(
    signals: Signals, image: int, budget: int, sign: int, calls: Calls
) -> tuple[list[int], list[Vector]]:
    """Kept patches and the tokens that come out."""
    texts = signals[Signal.SIMILARITY][image, : signals.text_counts[image]].double().tolist()
    features = signals.patch_tokens[image].double().tolist()
    patches = range(len(features))
    scores = [softmax([sign * similarity for similarity in text]) for text in texts]
    mean = [math.fsum(text[patch] for text in scores) / len(scores) for patch in patches]
    falling = sorted(patches, key=lambda patch: -mean[patch])
    # Softmax scores are small numbers: their lead is measured in parts of themselves.
    if budget > 1:
        last, next_ = mean[falling[budget - 2]], mean[falling[budget - 1]]
        calls.note(1.0, next_ / last)
    kept, dropped = sorted(falling[: budget - 1]), falling[budget - 1 :]
    share = [1 / len(dropped)] * len(dropped)
    rest = weighted_sum([features[patch] for patch in dropped], share, len(features[0]))
    return kept, [*(features[patch] for patch in kept), rest]


@pytest.mark.parametrize("direction", ["high", "low"])
@pytest.mark.parametrize("seed", range(60))
def test_selection_equals_the_re_derivation(seed: int, direction: str) -> None:
    shape, sign = random_shape(seed, least_texts=1), 1 if direction == "high" else -1
    signals, expected = clear_case(
        seed, shape, 8, lambda *case: derive(*case[:2], shape.budget, sign, case[2])
    )
    selection = build_pruner("trim", {"direction": direction}).select(signals, shape.budget)
    for one, (kept, tokens) in zip(selection.unbind(), expected, strict=True):
        assert one.indices.tolist() == [*kept, shape.patches]
        assert one.guided.tolist() == [True] * len(kept) + [False]
        torch.testing.assert_close(one.tokens, torch.tensor(tokens), rtol=1e-5, atol=1e-5)


def _select(
    similarity: list[Vector], budget: int, direction: Literal["high", "low"] = "high"
) -> Selection:
    patches = len(similarity[0])
    signals = with_values(
        random_signals([len(similarity)], patches=patches),
        {
            Signal.SIMILARITY: torch.tensor([similarity]),
            Signal.FEATURES: torch.arange(-1.0, patches).reshape(1, 1 + patches, 1) * 10,
        },
    )
    [selection] = build_pruner("trim", {"direction": direction}).select(signals, budget).unbind()
    return selection


def test_highest_stay_and_the_mean_of_the_others_follows() -> None:
    selection = _select([[0.0, 3.0, 1.0, 2.0, -1.0]], 3)
    assert selection.indices.tolist() == [1, 3, 5]
    # Features are 0, 10, 20, 30, 40: the mean of patches 0, 2 and 4 is 20.
    assert selection.tokens[:, 0].tolist() == [10.0, 30.0, 20.0]


def test_low_direction_keeps_the_lowest() -> None:
    selection = _select([[0.0, 3.0, 1.0, 2.0, -1.0]], 3, "low")
    assert selection.indices.tolist() == [0, 4, 5]
    assert selection.tokens[:, 0].tolist() == [0.0, 40.0, 20.0]


def test_several_texts_are_averaged_after_the_softmax() -> None:
    # By the mean of the similarities, patch 2 (2.0) would win over patch 0 (1.5). The softmax of
    # the first text gives patch 0 nearly everything, 0.95, and so a mean of more than 0.47;
    # patch 2 gets at most 0.05 from the first text and 0.5 from the second, a mean below 0.3.
    first, second = [6.0, 0.0, 3.0, 0.0], [-3.0, 1.0, 1.0, -3.0]
    assert _select([first, second], 2).indices.tolist() == [0, 4]


def test_budget_of_one_is_the_mean_of_all() -> None:
    selection = _select([[0.0, 3.0, 1.0, 2.0, -1.0]], 1)
    assert selection.indices.tolist() == [5]
    assert selection.tokens[:, 0].tolist() == [20.0]


def test_similarities_that_differ_widely_still_rank() -> None:
    """CLIP's dot products are not normalised: their softmax must not run out of numbers."""
    similarity = [[-40.0, 40.0, -20.0, 20.0, -30.0]]
    assert _select(similarity, 4).indices.tolist() == [1, 2, 3, 5]
    assert _select(similarity, 2, "low").indices.tolist() == [0, 5]
