"""PruneSID against a slow re-derivation."""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.pruning.helpers import random_signals, with_values
from tests.pruning.rederivation import Calls, clear_case, random_shape
from vllm_litelvlm.pruning.base import CLS, Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner

Rows = NDArray[np.float64]
PRUNER = build_pruner("prunesid", {})


def row_space(rows: Rows) -> Rows:
    """An orthonormal basis of what rows span."""
    _, lengths, basis = np.linalg.svd(rows, full_matrices=False)
    return basis[lengths > 1e-9 * lengths[0]]


def components(features: Rows, count: int) -> Rows:
    """How much each token weighs in each principal component, by falling variance."""
    values = 1 / (1 + np.exp(-features))
    variables = (values - values.mean(axis=1, keepdims=True)).T
    width = len(variables)
    drawn = torch.randperm(256 * width, generator=torch.Generator().manual_seed(0))
    start = drawn.double().numpy().reshape(256, width) - (256 * width - 1) / 2
    weights = start[:count] @ values.T
    for _ in range(2):
        weights = row_space(weights @ variables.T) @ variables
    _, lengths, weights = np.linalg.svd(weights, full_matrices=False)
    return np.abs(weights[lengths > 1e-6 * lengths[0]])


def shares(sizes: list[int], left: list[int], budget: int, count: int) -> list[int]:
    groups = range(len(sizes))
    least = [min(1, size) for size in sizes]
    most = [min(5 * -(-budget // 64), size, some) for size, some in zip(sizes, left, strict=True)]
    while sum(most) < budget:
        most = [min(one + 1, size) for one, size in zip(most, sizes, strict=True)]
    rest = max(0, count - sum(least))
    ends = [round(Fraction(sum(left[: n + 1]), sum(left)) * rest) for n in groups]
    given = [min(least[n] + ends[n] - (ends[n - 1] if n else 0), most[n]) for n in groups]
    for n in sorted(groups, key=lambda n: -left[n]):
        given[n] += min(most[n] - given[n], sum(least) + rest - sum(given))
    return given


def derive(signals: Signals, image: int, budget: int, calls: Calls) -> list[int]:
    features = signals.patch_tokens[image].double().numpy()
    attention = signals[Signal.CLS_ATTENTION][image].double().numpy() * signals.patches
    own = signals.cls_tokens.shape[1]
    count = max(1, budget // 4)
    members: list[list[int]] = [[] for _ in range(count)]
    for patch, weights in enumerate(components(features, count).T):
        falling = np.argsort(-weights)
        if len(weights) > 1:
            calls.note(weights[falling[0]], weights[falling[1]])
        members[falling[0]].append(patch)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    limit = budget / 32 * (pairs.mean() if len(pairs) else 0)
    lines, left = [], []
    for patches in members:
        falling_patches = sorted(patches, key=lambda patch: -attention[patch])
        calls.order([attention[patch] for patch in falling_patches])
        stay: list[int] = []
        for patch in falling_patches:
            for earlier in stay:
                calls.note(abs(cosines[patch, earlier] - limit), 0)
            if all(cosines[patch, earlier] <= limit for earlier in stay):
                stay.append(patch)
        lines.append(stay + [patch for patch in falling_patches if patch not in stay])
        left.append(len(stay))
    given = shares([len(line) for line in lines], left, budget, budget - own)
    chosen = [patch for line, n in zip(lines, given, strict=True) for patch in line[:n]]
    return [CLS] * own + (chosen if budget > own else [])


def made(seed: int, own: int) -> Callable[..., Signals]:
    """Random signals of tokens that have more or less in common, with [CLS] or without."""
    common = random.Random(seed).choice([0.0, 0.5, 1.0])

    def make(*args: Any, **kwargs: Any) -> Signals:
        signals = random_signals(*args, **kwargs)
        features = signals[Signal.FEATURES] + common
        return with_values(signals, {Signal.FEATURES: features[:, 1 - own :]})

    return make


def case(seed: int, own: int) -> tuple[Signals, int, list[list[int]]]:
    shape = random_shape(seed)
    width = random.Random(seed).choice([8, 24, 60])
    signals, expected = clear_case(
        seed,
        shape,
        width,
        lambda *given: derive(*given[:2], shape.budget, given[2]),
        make=made(seed, own),
    )
    return signals, shape.budget, expected


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("seed", range(60))
def test_selection_equals_the_re_derivation(seed: int, own: int) -> None:
    signals, budget, expected = case(seed, own)
    selection = PRUNER.select(signals, budget)
    assert selection.indices.tolist() == expected
    assert not selection.guided.any()
    rows = signals[Signal.FEATURES]
    for image, one in enumerate(selection.unbind()):
        assert torch.equal(one.tokens, rows[image, one.indices + own])


@pytest.mark.parametrize("patches", [1, 2, 7, 36])
@pytest.mark.parametrize("own", [0, 1])
def test_every_budget_equals_the_re_derivation(patches: int, own: int) -> None:
    signals = made(patches, own)([1, 1], patches=patches, width=24)
    for budget in range(1, patches + 1):
        expected = [derive(signals, image, budget, Calls()) for image in range(2)]
        assert PRUNER.select(signals, budget).indices.tolist() == expected
        assert len(set(expected[0])) == budget


@pytest.mark.parametrize("seed", range(20))
def test_image_has_the_same_tokens_alone_and_in_a_batch(seed: int) -> None:
    signals = random_signals([1] * 8, patches=100, seed=seed, width=40)
    together = PRUNER.select(signals, 48)
    for image in range(8):
        alone = PRUNER.select(signals.rows([image]), 48)
        assert torch.equal(alone.indices[0], together.indices[image])


def test_start_does_not_depend_on_what_was_drawn_before() -> None:
    signals = random_signals([1], width=24)
    first = PRUNER.select(signals, 64)
    torch.manual_seed(1)
    torch.randn(3)
    before = torch.get_rng_state()
    assert torch.equal(PRUNER.select(signals, 64).indices, first.indices)
    assert torch.equal(torch.get_rng_state(), before)


def two_clusters(patches: int = 16) -> Signals:
    """Tokens along one of two directions, by turns; attention falls from patch to patch."""
    signals = random_signals([1], patches=patches, width=12)
    directions = 2 * torch.nn.functional.one_hot(torch.arange(1 + patches) % 2, 12).float()
    noise = 0.01 * torch.randn(1, 1 + patches, 12, generator=torch.Generator().manual_seed(0))
    attention = torch.arange(patches, 0, -1.0)[None] / 1000
    return with_values(
        signals, {Signal.FEATURES: directions + noise, Signal.CLS_ATTENTION: attention}
    )


def test_suppressed_tokens_come_last() -> None:
    # One group. The mean cosine is 7 / 15, and 5 / 32 of it is more than different directions have
    # and less than equal ones: the first of either direction stays.
    attention = two_clusters()[Signal.CLS_ATTENTION].clone()
    attention[0, 1] = 0.0001  # the first of its direction is now patch 3
    signals = with_values(two_clusters(), {Signal.CLS_ATTENTION: attention})
    [indices] = PRUNER.select(signals, 5).indices.tolist()
    assert indices == [CLS, 0, 3, 2, 4]


def test_every_group_gives_between_one_token_and_its_most() -> None:
    for seed in range(10):
        signals = made(2, 1)([1], patches=576, seed=seed, width=60)
        values = torch.sigmoid(signals.patch_tokens[0]).double().numpy()
        logits = np.log(values / (1 - values))
        belongs = components(logits, 16).argmax(axis=0)
        kept = PRUNER.select(signals, 64).indices[0, 1:].numpy()
        sizes, given = (np.bincount(some, minlength=16) for some in (belongs, belongs[kept]))
        assert (given >= np.minimum(sizes, 1)).all()
        assert (given <= np.minimum(sizes, 5)).all() or np.minimum(sizes, 5).sum() < 64


def test_budget_of_one_is_cls_alone() -> None:
    selection = PRUNER.select(two_clusters(), 1)
    assert selection.indices.tolist() == [[CLS]]
    assert torch.equal(selection.tokens, two_clusters().cls_tokens)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("signal", [Signal.FEATURES, Signal.CLS_ATTENTION])
@pytest.mark.parametrize("whole", [True, False])
def test_broken_numbers_repeat_no_token(value: float, signal: Signal, whole: bool) -> None:
    signals = random_signals([1, 1], patches=64, width=24)
    broken = signals[signal].clone()
    broken[0, slice(None) if whole else 3] = value
    signals = with_values(signals, {signal: broken})
    for budget in (1, 2, 9, 32, 63, 64):
        indices = PRUNER.select(signals, budget).indices
        for places in indices.tolist():
            assert len(set(places)) == budget
            assert places[0] == CLS
            assert set(places[1:]) <= set(range(64))
