"""What every registered method promises, whatever it is."""

import dataclasses

import pytest
import torch

from tests.pruning.helpers import random_signals
from vllm_litelvlm.options import OptionsError
from vllm_litelvlm.pruning.base import Pruner, Selection, Signals
from vllm_litelvlm.pruning.registry import build_pruner, method_names, pruner_class

BUDGETS = [1, 2, 29, 58, 64, 128, 144, 192, 288, 575, 576]
PRUNERS = [
    *(build_pruner(name, {}) for name in method_names()),
    build_pruner("litelvlm", {"variant": "reference"}),
    build_pruner("litelvlm", {"share": 0.05}),
    build_pruner("litelvlm", {"context": False, "direction": "high"}),
    build_pruner("litelvlm", {"order": "context_first"}),
    build_pruner("context", {"variant": "reference"}),
    build_pruner("random", {"seed": 7}),
]

every_pruner = pytest.mark.parametrize(
    "pruner", PRUNERS, ids=[f"{pruner.name}({pruner})" for pruner in PRUNERS]
)


def _budget(pruner: Pruner, budget: int) -> int:
    return 576 if pruner.name == "keep-all" else budget


def _same(left: Selection, right: Selection) -> bool:
    return torch.equal(left.indices, right.indices) and torch.equal(left.guided, right.guided)


@every_pruner
@pytest.mark.parametrize("budget", BUDGETS)
def test_selection_has_the_promised_count_of_unique_patches(pruner: Pruner, budget: int) -> None:
    budget = _budget(pruner, budget)
    for selection in pruner.select(random_signals([1, 2, 5]), [budget] * 3):
        indices = selection.indices.tolist()
        assert len(indices) == len(selection.guided) == pruner.output_count(budget)
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(576))
        assert selection.indices.dtype == torch.int64
        assert selection.guided.dtype == torch.bool


@every_pruner
def test_selection_is_deterministic_and_leaves_its_inputs_alone(pruner: Pruner) -> None:
    signals, untouched = random_signals([2, 1]), random_signals([2, 1])
    budgets = [_budget(pruner, 64), _budget(pruner, 192)]
    first, second = pruner.select(signals, budgets), pruner.select(signals, budgets)
    assert all(map(_same, first, second))
    for signal in pruner.needs:
        assert torch.equal(signals[signal], untouched[signal])


@every_pruner
@pytest.mark.parametrize("images", [1, 3, 8])
def test_selection_does_not_depend_on_batch_neighbours(pruner: Pruner, images: int) -> None:
    text_counts = [1, 0, 5, 2, 3, 1, 2, 4][:images]
    budgets = [_budget(pruner, budget) for budget in [64, 1, 192, 29, 128, 575, 2, 288][:images]]
    signals = random_signals([*text_counts, 5])
    signals = signals.rows(range(images))
    together = pruner.select(signals, budgets)
    for image, budget in enumerate(budgets):
        alone = Signals(
            images=1,
            patches=576,
            device=signals.device,
            text_counts=[text_counts[image]],
            similarity=signals.similarity[image : image + 1, : text_counts[image]].clone()
            if signals.similarity is not None
            else None,
            context=signals.rows([image]).context,
            context_normalised=signals.rows([image]).context_normalised,
            cls_attention=signals.rows([image]).cls_attention,
        )
        [selection] = pruner.select(alone, [budget])
        assert _same(selection, together[image])


@every_pruner
def test_batch_without_any_text_is_selected_by_the_rest(pruner: Pruner) -> None:
    signals = random_signals([0, 0, 1]).rows([0, 1])
    none = dataclasses.replace(signals, similarity=torch.empty(2, 0, 576))
    budgets = [_budget(pruner, 64), _budget(pruner, 192)]
    selections = pruner.select(none, budgets)
    assert [len(selection.indices) for selection in selections] == budgets
    assert all(map(_same, selections, pruner.select(signals, budgets)))
    assert not any(selection.guided.any() for selection in selections)


@every_pruner
def test_budget_of_all_patches_keeps_them_all(pruner: Pruner) -> None:
    for selection in pruner.select(random_signals([1, 3]), [576, 576]):
        assert sorted(selection.indices.tolist()) == list(range(576))


@every_pruner
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_of_any_dtype_give_full_selections(
    pruner: Pruner, dtype: torch.dtype
) -> None:
    from transformers import CLIPVisionConfig

    from vllm_litelvlm.vision.clip import ClipScorer

    config = CLIPVisionConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=3, image_size=336, patch_size=14
    )
    torch.manual_seed(0)
    scorer = ClipScorer(config, projection_dim=16)
    hidden, feature_input = torch.randn(2, 2, 577, 32).to(dtype)
    texts = [torch.randn(2, 16), torch.randn(1, 16)]
    signals = scorer.signals(hidden, feature_input, texts, pruner.needs)
    for signal in pruner.needs:
        assert signals[signal].dtype == torch.float32
    budget = _budget(pruner, 64)
    for selection in pruner.select(signals, [budget, budget]):
        assert len(set(selection.indices.tolist())) == budget


@every_pruner
def test_only_methods_that_read_the_text_ask_for_similarity(pruner: Pruner) -> None:
    assert ("similarity" in pruner.needs) == pruner.reads_text


def test_unknown_method_is_refused_by_naming_those_there_are() -> None:
    with pytest.raises(OptionsError, match="'method' is 'magic'; allowed: litelvlm, random"):
        pruner_class("magic")


def test_random_draws_differ_by_seed_and_nest_by_budget() -> None:
    signals = random_signals([1])
    [small] = build_pruner("random", {"seed": 1}).select(signals, [64])
    [large] = build_pruner("random", {"seed": 1}).select(signals, [128])
    [other] = build_pruner("random", {"seed": 2}).select(signals, [64])
    assert set(small.indices.tolist()) < set(large.indices.tolist())
    assert set(small.indices.tolist()) != set(other.indices.tolist())


@pytest.mark.parametrize(
    ("name", "signal"), [("context", "context"), ("cls-attention", "cls_attention")]
)
def test_score_methods_keep_the_highest_in_raster_order(name: str, signal: str) -> None:
    signals = random_signals([1])
    scores = getattr(signals, signal)[0].tolist()
    [selection] = build_pruner(name, {}).select(signals, [50])
    expected = sorted(sorted(range(576), key=lambda patch: -scores[patch])[:50])
    assert selection.indices.tolist() == expected
    assert not selection.guided.any()
