"""LiteLVLM against a slow, obvious re-derivation from the method's description."""

import itertools
import random
from typing import Any

import pytest
import torch

from tests.pruning.helpers import random_signals, with_values
from vllm_litelvlm.pruning.base import Selection, Signal, Signals
from vllm_litelvlm.pruning.batch import prune
from vllm_litelvlm.pruning.order import Order
from vllm_litelvlm.pruning.registry import build_pruner


def expected_selection(
    similarity: list[list[float]],
    context: list[float],
    budget: int,
    options: dict[str, Any],
) -> tuple[list[int], set[int]]:
    """Kept patches in order, and the similarity set, with sorted lists and sets only."""
    patches = range(len(context))
    own = "low" if options["guidance"] == "similarity" else "high"
    sign = 1 if (options["direction"] or own) == "low" else -1
    preferred = [sorted(patches, key=lambda j, s=s: sign * s[j]) for s in similarity]
    texts, paper = len(similarity), options["variant"] == "paper"

    def first(count: int) -> set[int]:
        """The ``count`` patches that every text (paper) or any text (reference) wants first."""
        merge = max if paper else min
        places = [{patch: place for place, patch in enumerate(order)} for order in preferred]
        wanted = sorted(patches, key=lambda j: merge(place[j] for place in places))
        return set(wanted[:count])

    if texts == 0:
        chosen: set[int] = set()
    elif not options["context"]:
        chosen = first(budget)
    elif options["share"] is not None:
        count = int(budget * options["share"] + 0.5)
        chosen = first(count if options["share"] == 0 else max(1, count))
    elif texts == 1:
        chosen = first(max(1, int(budget * 0.5 + 0.5)) if paper else budget)
    elif paper:
        chosen = set.intersection(*(set(order[:budget]) for order in preferred))
    else:
        chosen = set.union(*(set(order[: budget // texts]) for order in preferred))
    others = sorted(set(patches) - chosen, key=lambda j: -context[j])
    recovered = others[: budget - len(chosen)]
    order = options["order"] or ("raster" if paper else "context_first")
    kept = sorted(recovered + list(chosen))
    return (kept if order == "raster" else recovered + sorted(chosen)), chosen


def _cases() -> list[tuple[dict[str, Any], list[int], list[int]]]:
    every = itertools.product(
        ["paper", "reference"],
        [None, 0.0, 0.05, 0.25, 0.5, 0.75, 1.0],
        ["similarity", "value"],
        [None, "low", "high"],
        [True, False],
        [None, "raster", "context_first"],
    )
    names = ("variant", "share", "guidance", "direction", "context", "order")
    generator = random.Random(0)
    cases = []
    for values in every:
        text_counts = [generator.choice([0, 1, 2, 3, 5]) for _ in range(3)]
        text_counts[0] = max(1, text_counts[0])
        budgets = [generator.choice([1, 3, 29, 64, 128, 192, 300, 576]) for _ in range(3)]
        cases.append((dict(zip(names, values, strict=True)), text_counts, budgets))
    return cases


CASES = _cases()


@pytest.mark.parametrize(("options", "text_counts", "budgets"), CASES)
def test_selection_equals_the_re_derivation(
    options: dict[str, Any], text_counts: list[int], budgets: list[int]
) -> None:
    seed = CASES.index((options, text_counts, budgets))
    signals = random_signals(text_counts, seed=seed)
    paper, pruner = options["variant"] == "paper", build_pruner("litelvlm", options)
    context = signals[Signal.CONTEXT if paper else Signal.CONTEXT_NORMALISED]

    def assert_expected(selection: Selection, image: int, budget: int) -> None:
        similarity = signals[Signal(options["guidance"])][image, : text_counts[image]]
        kept, chosen = expected_selection(
            similarity.tolist(), context[image].tolist(), budget, options
        )
        assert selection.indices.tolist() == kept
        assert selection.guided.tolist() == [patch in chosen for patch in kept]

    for image, selection in enumerate(pruner.select(signals, budgets[0]).unbind()):
        assert_expected(selection, image, budgets[0])
    orders = [Order(pruner, budget) for budget in budgets]
    for image, selection in enumerate(prune(signals, orders, [None] * 3)):
        assert_expected(selection, image, budgets[image])


def _signals(similarity: list[list[float]], context: list[float]) -> Signals:
    return with_values(
        random_signals([len(similarity)], patches=len(context)),
        {
            Signal.SIMILARITY: torch.tensor([similarity]),
            Signal.CONTEXT: torch.tensor([context]),
            Signal.CONTEXT_NORMALISED: torch.tensor([context]),
        },
    )


def _kept(signals: Signals, budget: int, **options: Any) -> list[int]:
    [kept] = build_pruner("litelvlm", options).select(signals, budget).indices.tolist()
    return list(kept)


def test_one_text_keeps_half_by_similarity_and_half_by_context() -> None:
    signals = _signals([[5.0, 1.0, 4.0, 0.0, 3.0, 2.0]], [0.9, 0.1, 0.8, 0.2, 0.3, 0.4])
    assert _kept(signals, 4) == [0, 1, 2, 3]  # 3, 1 by similarity; 0, 2 by context


def test_half_a_token_rounds_up() -> None:
    signals = _signals([[5.0, 1.0, 4.0, 0.0, 3.0, 2.0]], [0.9, 0.1, 0.8, 0.2, 0.3, 0.4])
    selection = build_pruner("litelvlm", {}).select(signals, 3)
    assert selection.guided.sum() == 2  # 1.5
    selection = build_pruner("litelvlm", {"share": 0.05}).select(signals, 3)
    assert selection.guided.sum() == 1  # 0.15, but at least one


def test_two_texts_keep_what_both_want_or_what_either_wants() -> None:
    first, second = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 0.0, 1.0, 4.0, 2.0, 3.0]
    context = [0.1, 0.2, 0.3, 0.6, 0.5, 0.4]
    signals = _signals([first, second], context)
    # Lowest four: {0, 1, 2, 3} and {1, 2, 4, 5}; in both {1, 2}; then context: 3, 4.
    assert _kept(signals, 4) == [1, 2, 3, 4]
    # Lowest two of each: {0, 1} and {1, 2}; context first: 3.
    assert _kept(signals, 4, variant="reference") == [3, 0, 1, 2]


def test_equal_scores_go_to_the_lower_patch() -> None:
    signals = _signals([[1.0] * 6], [0.5] * 6)
    assert _kept(signals, 4) == [0, 1, 2, 3]
