"""VisionZip against a slow re-derivation."""

import math
import random
from typing import Any

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
from vllm_litelvlm.pruning.base import CLS, Selection, Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner

PUBLISHED = 54 / 64


def derive(
    signals: Signals, image: int, budget: int, share: float, calls: Calls
) -> tuple[list[int], list[Vector]]:
    """Indices and tokens in order; of a tower without [CLS], which is then not kept."""
    features = signals[Signal.FEATURES][image].double().tolist()
    attention = signals[Signal.CLS_ATTENTION][image].double().tolist()
    keys = [unit(key) for key in signals[Signal.KEYS][image].double().tolist()]
    patches, width = range(len(attention)), len(features[0])
    own = len(features) - len(attention)  # [CLS], where there is one
    dominant = max(own, math.floor(budget * share + 0.5))  # it is never left out
    contextual = budget - dominant
    falling = sorted(patches, key=lambda patch: -attention[patch])
    attended = sorted(falling[: dominant - own])
    indices = [CLS] * own + attended
    tokens = [features[own + patch] for patch in indices]  # [CLS] comes first and is -1
    if contextual:
        rest = [patch for patch in patches if patch not in attended]
        step = max(1, len(rest) // contextual)
        targets = rest[::step][:contextual]
        joined: dict[int, list[int]] = {target: [] for target in targets}
        for patch in rest:
            if patch not in joined:
                cosine = {target: dot(keys[patch], keys[target]) for target in targets}
                nearest = sorted(targets, key=lambda target, of=cosine: -of[target])
                calls.cut([cosine[target] for target in nearest], 1)
                joined[nearest[0]].append(patch)
        for target, members in joined.items():
            vectors = [features[own + member] for member in members]
            mean = weighted_sum(vectors, [1 / max(1, len(members))] * len(members), width)
            indices.append(target)
            tokens.append(add(features[own + target], mean))
    return indices, tokens


@pytest.mark.parametrize("seed", range(80))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape = random_shape(seed)
    share = random.Random(seed).choice([PUBLISHED, PUBLISHED, 0.0, 0.2, 0.5, 1.0])
    signals, expected = clear_case(
        seed, shape, 8, lambda *case: derive(*case[:2], shape.budget, share, case[2])
    )
    selection = build_pruner("visionzip", {"share": share}).select(signals, shape.budget)
    assert not selection.guided.any()
    for one, (indices, tokens) in zip(selection.unbind(), expected, strict=True):
        assert one.indices.tolist() == indices
        torch.testing.assert_close(one.tokens, torch.tensor(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("budget", "dominant"), [(64, 54), (128, 108), (192, 162)])
def test_default_share_gives_the_published_counts(budget: int, dominant: int) -> None:
    signals = random_signals([0])
    [selection] = build_pruner("visionzip", {}).select(signals, budget).unbind()
    indices = selection.indices.tolist()
    assert indices[0] == CLS
    top = signals[Signal.CLS_ATTENTION][0].topk(dominant - 1).indices
    assert indices[1:dominant] == sorted(top.tolist())
    assert indices[dominant:] == sorted(indices[dominant:])


@pytest.mark.parametrize("seed", range(30))
def test_tower_without_cls_has_one_attended_token_more(seed: int) -> None:
    shape = random_shape(seed)

    def without_cls(*args: Any, **kwargs: Any) -> Signals:
        signals = random_signals(*args, **kwargs)
        return with_values(signals, {Signal.FEATURES: signals.patch_tokens})

    signals, expected = clear_case(
        seed,
        shape,
        8,
        lambda *case: derive(*case[:2], shape.budget, PUBLISHED, case[2]),
        make=without_cls,
    )
    selection = build_pruner("visionzip", {}).select(signals, shape.budget)
    for one, (indices, tokens) in zip(selection.unbind(), expected, strict=True):
        assert one.indices.tolist() == indices
        torch.testing.assert_close(one.tokens, torch.tensor(tokens), rtol=1e-5, atol=1e-5)


def _by_hand(budget: int, share: float) -> Selection:
    """Six patches: features 1 to 32, falling attention, keys at 0, 0, 0, 80, 90 and 10 degrees."""
    angles = [math.radians(degrees) for degrees in [0, 0, 0, 80, 90, 10]]
    signals = with_values(
        random_signals([0], patches=6),
        {
            Signal.CLS_ATTENTION: torch.tensor([[0.3, 0.2, 0.1, 0.05, 0.04, 0.03]]),
            Signal.FEATURES: torch.tensor([[100.0, 1, 2, 4, 8, 16, 32]])[:, :, None],
            Signal.KEYS: torch.tensor([[[math.cos(a), math.sin(a)] for a in angles]]) * 5,
        },
    )
    [selection] = build_pruner("visionzip", {"share": share}).select(signals, budget).unbind()
    return selection


def test_targets_stand_at_a_uniform_stride_and_take_the_mean_of_those_that_join() -> None:
    selection = _by_hand(4, 0.5)
    # Dominant: [CLS] and patch 0. Rest: 1 2 3 4 5; two targets at a stride of 5 // 2: 1 and 3.
    assert selection.indices.tolist() == [CLS, 0, 1, 3]
    # Patches 2 and 5 join 1, and 4 joins 3: 2 + (4 + 32) / 2 and 8 + 16.
    torch.testing.assert_close(selection.tokens[:, 0], torch.tensor([100.0, 1.0, 20.0, 24.0]))


def test_target_that_nobody_joins_stays_as_it_is() -> None:
    selection = _by_hand(6, 1 / 3)
    # Rest 1 2 3 4 5 and four targets at a stride of 1: 1, 2, 3 and 4; 5 joins the first of the
    # equal keys 1 and 2.
    assert selection.indices.tolist() == [CLS, 0, 1, 2, 3, 4]
    expected = torch.tensor([100.0, 1.0, 2.0 + 32.0, 4.0, 8.0, 16.0])
    torch.testing.assert_close(selection.tokens[:, 0], expected)


def test_share_of_one_is_cls_and_the_most_attended() -> None:
    selection = _by_hand(4, 1.0)
    assert selection.indices.tolist() == [CLS, 0, 1, 2]
    assert selection.tokens[:, 0].tolist() == [100.0, 1.0, 2.0, 4.0]


def test_share_of_zero_still_keeps_cls() -> None:
    selection = _by_hand(3, 0.0)
    assert selection.indices.tolist() == [CLS, 0, 3]
    expected = torch.tensor([100.0, 1.0 + (2 + 4 + 32) / 3, 8.0 + 16.0])
    torch.testing.assert_close(selection.tokens[:, 0], expected)


def test_budget_of_one_is_cls_alone() -> None:
    selection = _by_hand(1, PUBLISHED)
    assert selection.indices.tolist() == [CLS]
    assert selection.tokens[:, 0].tolist() == [100.0]
