"""Methods inside the language model against slow re-derivations, and their options."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pruning import decoder_reference as reference
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.pruning.decoder import DecoderState
from vllm_litelvlm.pruning.fastv import FastV
from vllm_litelvlm.pruning.registry import (
    build_decoder_pruner,
    decoder_method_names,
    decoder_pruner_class,
    method_names,
    pruner_class,
)
from vllm_litelvlm.pruning.sparsevlm import PUBLISHED_SCHEDULES, SparseVLM

SEEDS = range(50)


def random_case(seed: int, pruned_already: bool = False) -> tuple[DecoderState, Tensor]:
    """A state of random sizes and values, and the attention behind it.

    With ``pruned_already`` fewer visual tokens are left than the prompt had.
    """
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    heads, width, start, original, text = (
        number(1, 5), number(2, 24), number(0, 9), number(30, 120), number(2, 12),
    )  # fmt: skip
    visual = number(10, original) if pruned_already else original
    tokens = start + visual + text
    attention = torch.randn(heads, tokens, tokens, generator=generator)
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    attention = attention.masked_fill(later, -torch.inf).softmax(dim=-1)
    state = DecoderState(
        hidden=torch.randn(tokens, width, generator=generator),
        embedded=torch.randn(start + original + text, width, generator=generator),
        start=start,
        visual=visual,
        attention=lambda rows: attention[:, rows],
    )
    return state, attention


@pytest.mark.parametrize("seed", SEEDS)
def test_fastv_keeps_what_the_last_token_attends_to(seed: int) -> None:
    state, attention = random_case(seed)
    budget = seed % state.visual + 1
    selection = FastV().select(state, budget, stage=0)
    assert selection.kept.tolist() == reference.fastv(attention, state.start, state.visual, budget)
    assert selection.added.shape == (0, state.hidden.shape[1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stage", [0, 1])
def test_sparsevlm_keeps_and_merges_what_its_raters_say(seed: int, stage: int) -> None:
    state, attention = random_case(seed, pruned_already=stage > 0)
    original = len(state.embedded) - (len(state.hidden) - state.visual)
    schedule = (seed % 40 + 2, seed % 40 + 1)
    selection = SparseVLM(layers=(0, 1), schedule=schedule).select(state, 1, stage)
    rating = reference.raters(state.embedded, state.start, original)
    kept, merged = reference.sparsevlm(
        attention, state.hidden, state.start, state.visual, rating, schedule[stage]
    )
    assert selection.kept.tolist() == kept
    torch.testing.assert_close(selection.added.double(), merged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", sorted(PUBLISHED_SCHEDULES))
def test_sparsevlm_follows_the_published_schedule(budget: int) -> None:
    pruner = SparseVLM()
    assert pruner.pruned_layers(budget, depth=32) == (2, 6, 15)
    state, _ = random_case(0)
    for stage, wanted in enumerate(PUBLISHED_SCHEDULES[budget]):
        selection = pruner.select(state, budget, stage)
        assert len(selection.kept) == min(wanted, state.visual - 1)
        pruned = state.visual - len(selection.kept)
        assert len(selection.added) == (int(pruned * 0.3) + 1) // 10 + 1


def test_sparsevlm_lets_every_word_rate_where_none_stands_out() -> None:
    state, attention = random_case(3)
    same = state.embedded.clone()
    same[state.start + state.visual :] = 1.0
    alike = DecoderState(state.hidden, same, state.start, state.visual, state.attention)
    selection = SparseVLM(layers=(0,), schedule=(9,)).select(alike, 1, 0)
    words = list(range(len(same) - state.start - state.visual))
    kept, _ = reference.sparsevlm(attention, state.hidden, state.start, state.visual, words, 9)
    assert selection.kept.tolist() == kept


def test_sparsevlm_merges_equal_tokens_without_dividing_by_nothing() -> None:
    state, _ = random_case(4)
    alike = DecoderState(
        torch.ones_like(state.hidden), state.embedded, state.start, state.visual, state.attention
    )
    selection = SparseVLM(layers=(0,), schedule=(1,)).select(alike, 1, 0)
    torch.testing.assert_close(selection.added, torch.ones_like(selection.added))


@pytest.mark.parametrize("method", decoder_method_names())
def test_selection_leaves_its_inputs_alone_and_is_repeatable(method: str) -> None:
    state, attention = random_case(5)
    before = [tensor.clone() for tensor in (state.hidden, state.embedded, attention)]
    pruner = build_decoder_pruner(method, {})
    first, second = (pruner.select(state, 64, 0) for _ in range(2))
    assert torch.equal(first.kept, second.kept)
    assert torch.equal(first.added, second.added)
    for tensor, was in zip((state.hidden, state.embedded, attention), before, strict=True):
        assert torch.equal(tensor, was)


@pytest.mark.parametrize(
    ("method", "parameters", "said"),
    [
        ("fastv", {"layer": 0}, "'layer' is 0"),
        ("fastv", {"layer": 2.5}, "'layer' is 2.5"),
        ("fastv", {"schedule": [1]}, "'schedule' is unknown"),
        ("sparsevlm", {"layers": []}, "'layers' is []"),
        ("sparsevlm", {"layers": [2, 2]}, "rising"),
        ("sparsevlm", {"layers": [6, 2]}, "rising"),
        ("sparsevlm", {"layers": [-1]}, "from 0"),
        ("sparsevlm", {"layers": "2"}, "'layers' is \"2\""),
        ("sparsevlm", {"schedule": [10, 20, 30]}, "falling"),
        ("sparsevlm", {"schedule": [10, 5, 0]}, "from 1"),
        ("sparsevlm", {"schedule": [10, 5, True]}, "true"),
        ("sparsevlm", {"schedule": [10, 5]}, "'schedule' has 2 entries and 'layers' 3"),
    ],
)
def test_bad_option_is_refused_with_its_value(
    method: str, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionsError, match=r"allowed|refused") as refused:
        build_decoder_pruner(method, parameters)
    assert said in str(refused.value)


def test_options_may_come_as_json_lists() -> None:
    pruner = build_decoder_pruner("sparsevlm", {"layers": [0, 3], "schedule": [50, 20]})
    assert pruner == SparseVLM(layers=(0, 3), schedule=(50, 20))
    assert pruner.pruned_layers(999, depth=5) == (0, 3)


@pytest.mark.parametrize(
    ("pruner", "budget", "depth", "said"),
    [
        (FastV(layer=2), 64, 2, "allowed: 1 to 1"),
        (FastV(layer=40), 64, 32, "'layer' is 40"),
        (SparseVLM(), 100, 32, "allowed: 64, 96, 128, 192"),
        (SparseVLM(), 64, 16, "allowed: 0 to 14"),
        (SparseVLM(layers=(2, 6)), 64, 32, "published schedules are for 3 layers"),
    ],
)
def test_what_a_model_or_a_budget_does_not_allow_is_refused(
    pruner: FastV | SparseVLM, budget: int, depth: int, said: str
) -> None:
    with pytest.raises(OptionsError) as refused:
        pruner.pruned_layers(budget, depth)
    assert said in str(refused.value)


def test_methods_of_the_decoder_are_no_methods_of_the_engine() -> None:
    assert not set(decoder_method_names()) & set(method_names())
    for name in decoder_method_names():
        assert decoder_pruner_class(name).name == name
        with pytest.raises(OptionsError, match="inside the language model"):
            pruner_class(name)
