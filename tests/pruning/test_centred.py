"""Centred features of DivPrune and CDPruner against a slow re-derivation."""

import numpy as np
import pytest

from tests.pruning.rederivation import Calls, Shape, clear_case, random_shape
from tests.pruning.test_scope import Matrix
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner


def centred(signals: Signals, image: int) -> tuple[Matrix, Matrix]:
    """Cosines of an image's tokens less their mean, and how rare each is, from 0 to 1."""
    tokens = signals[Signal.PROJECTED][image].double().numpy()
    tokens = tokens - tokens.mean(axis=0)
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    likeness = unit @ unit.T
    unlike = -(likeness.sum(axis=1) - 1) / (len(tokens) - 1)
    return likeness, (unlike - unlike.min()) / (unlike.max() - unlike.min())


def taken(keys: Matrix, chosen: list[int], calls: Calls) -> int:
    keys = keys.copy()
    keys[chosen] = -np.inf
    falling = np.argsort(-keys)
    if len(chosen) < len(keys) - 1:
        calls.note(float(keys[falling[0]]), float(keys[falling[1]]))
    return int(falling[0])


def diverse(signals: Signals, image: int, budget: int, calls: Calls) -> list[int]:
    likeness, rare = centred(signals, image)
    chosen = [taken(rare, [], calls)]
    while len(chosen) < budget:
        chosen.append(taken(rare * (1 - likeness[chosen]).min(axis=0), chosen, calls))
    return sorted(chosen)


def voluminous(signals: Signals, image: int, budget: int, calls: Calls) -> list[int]:
    likeness, rare = centred(signals, image)
    weights = rare
    if texts := signals.text_counts[image]:
        raw = -signals[Signal.COSINE][image, :texts].double().numpy().mean(axis=0)
        weights = rare * (raw - raw.min() + 1e-6) / (raw.max() - raw.min())
    kernel = weights[:, None] * likeness * weights
    chosen: list[int] = []
    while len(chosen) < budget:
        gains = kernel.diagonal().copy()
        if chosen:
            across, inside = kernel[:, chosen], kernel[np.ix_(chosen, chosen)]
            gains -= (across * np.linalg.solve(inside, across.T).T).sum(axis=1)
        chosen.append(taken(gains, chosen, calls))
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize(("method", "derive"), [("divprune", diverse), ("cdpruner", voluminous)])
def test_selection_equals_the_re_derivation(seed: int, method: str, derive: object) -> None:
    shape = random_shape(seed)
    # Past its rank, which is twice the width, nothing but rounding is left of CDPruner's kernel.
    shape = Shape(shape.patches, min(shape.budget, 10), shape.text_counts)
    assert callable(derive)
    signals, expected = clear_case(
        seed, shape, 12, lambda *case: derive(*case[:2], shape.budget, case[2])
    )
    selection = build_pruner(method, {"centred": True}).select(signals, shape.budget)
    assert selection.indices.tolist() == expected
