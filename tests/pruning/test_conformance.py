"""What every registered method promises, whatever it is."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.pruning.helpers import (
    CLIP_LAYERS,
    TEXT_SIGNALS,
    made_up_tower,
    random_signals,
    with_values,
    without_padding,
)
from vllm_litelvlm.options import OptionsError
from vllm_litelvlm.pruning.base import CLS, Pruner, Selection, Signal, Signals, keep
from vllm_litelvlm.pruning.batch import choose_bases, needed_signals, prune
from vllm_litelvlm.pruning.order import Layer, Order
from vllm_litelvlm.pruning.registry import build_pruner, method_names, pruner_class

BUDGETS = [1, 2, 29, 58, 64, 128, 144, 192, 288, 575, 576]
DEFAULTS = [build_pruner(name, {}) for name in method_names()]
PRUNERS = [
    *DEFAULTS,
    build_pruner("litelvlm", {"variant": "reference"}),
    build_pruner("litelvlm", {"share": 0.0}),
    build_pruner("litelvlm", {"share": 0.05}),
    build_pruner("litelvlm", {"share": 1.0}),
    build_pruner("litelvlm", {"context": False, "direction": "high"}),
    build_pruner("litelvlm", {"guidance": "value"}),
    build_pruner("litelvlm", {"order": "context_first"}),
    build_pruner("fovea", {"guidance": "similarity"}),
    build_pruner("fovea", {"direction": "low", "context": 0.0}),
    build_pruner("fovea", {"text": 0.0, "context": 0.0, "focus_text": 0.0}),
    build_pruner("context", {"variant": "reference"}),
    build_pruner("random", {"seed": 7}),
    build_pruner("trim", {"direction": "low"}),
    build_pruner("prumerge+", {"share": 0.0}),
    build_pruner("prumerge+", {"share": 1.0}),
    build_pruner("visionzip", {"share": 0.0}),
    build_pruner("visionzip", {"share": 1.0}),
    build_pruner("vispruner", {"share": 0.0}),
    build_pruner("vispruner", {"share": 1.0}),
    build_pruner("divprune", {"centred": True}),
    build_pruner("cdpruner", {"centred": True}),
    build_pruner("scope", {"alpha": 0.0}),
    build_pruner("mmtok", {"image": 0.0, "text_temperature": 1.0}),
    build_pruner("eadp", {"power": 2.0}),
    build_pruner("holov", {"crops": 5, "variance": 2.0}),
]
#: Methods that change no token, and those that change none of the patches that they keep.
SELECTING = {
    *("litelvlm", "fovea", "random", "context", "cls-attention", "vispruner"),
    *("divprune", "cdpruner", "scope", "mmtok", "eadp", "holov", "keep-all"),
}
KEEPING = [p for p in PRUNERS if p.name in SELECTING | {"trim"}] + [
    build_pruner("visionzip", {"share": 1.0}),
    build_pruner("prunesid", {}),
]


def _each(pruners: list[Pruner]) -> pytest.MarkDecorator:
    names = [f"{pruner.name}({pruner})" for pruner in pruners]
    return pytest.mark.parametrize("pruner", pruners, ids=names)


every_pruner = _each(PRUNERS)
every_layered_pruner = _each([pruner for pruner in PRUNERS if pruner.layered])


def _budget(pruner: Pruner, budget: int, patches: int = 576) -> int:
    return patches if pruner.name == "keep-all" else budget


def _only_what_is_needed(pruner: Pruner, signals: Signals) -> Signals:
    """Without the signals that the method does not name, so that reading one is an error."""
    return dataclasses.replace(
        signals,
        values={name: value for name, value in signals.values.items() if name in pruner.needs},
        tower=signals.tower if Signal.TOWER in pruner.needs else None,
    )


def _assert_whole(
    pruner: Pruner, selection: Selection, count: int, patches: int, like: Tensor
) -> None:
    """A batch's selection has ``count`` tokens an image, with unique places that exist."""
    shape = (len(like), count)
    assert selection.tokens.shape == (*shape, like.shape[-1])
    assert selection.tokens.dtype == like.dtype
    assert selection.indices.shape == selection.guided.shape == shape
    assert selection.indices.dtype == torch.int64
    assert selection.guided.dtype == torch.bool
    assert selection.tokens.isfinite().all()
    ascending = selection.indices.sort(dim=-1).values
    assert (ascending.diff(dim=-1) > 0).all()  # unique
    places = pruner.places(patches)
    assert places.start <= ascending.min() <= ascending.max() < places.stop
    assert places.start in (CLS, 0)
    assert places.stop in (patches, patches + 1)
    for indices in selection.indices.tolist():
        behind = sum(index >= patches for index in indices)
        assert indices[count - behind :] == list(range(patches, patches + behind))


def _prune(signals: Signals, pruners: list[Pruner], budgets: list[int]) -> list[Selection]:
    """A batch whose images all come in one layer."""
    return prune(signals, list(map(Order, pruners, budgets)), [None] * signals.images)


def _assert_same(left: Selection, right: Selection) -> None:
    assert torch.equal(left.indices, right.indices)
    assert torch.equal(left.guided, right.guided)
    torch.testing.assert_close(left.tokens, right.tokens, rtol=1e-5, atol=1e-5)


@_each(DEFAULTS)
def test_every_budget_gives_the_promised_count_of_unique_tokens(pruner: Pruner) -> None:
    """All budgets of LLaVA-1.5; where one takes long, every fourth and those near both ends."""
    slow = pruner.name in ("cdpruner", "scope", "mmtok", "eadp", "tome")
    budgets = {*range(1, 33), *range(545, 577), *range(1, 577, 4 if slow else 1)}
    signals = random_signals([2], width=4, layers=2)
    features, needed = signals.patch_tokens, _only_what_is_needed(pruner, signals)
    for budget in sorted({_budget(pruner, budget) for budget in budgets}):
        assert pruner.output_count(budget) == budget
        _assert_whole(pruner, pruner.select(needed, budget), budget, 576, features)


@every_pruner
@pytest.mark.parametrize("patches", [1, 4, 9, 64])
def test_every_budget_of_small_images_gives_the_promised_count(
    pruner: Pruner, patches: int
) -> None:
    signals = random_signals([1, 3], patches=patches)
    features = signals.patch_tokens
    for budget in sorted({_budget(pruner, budget, patches) for budget in range(1, patches + 1)}):
        selection = pruner.select(_only_what_is_needed(pruner, signals), budget)
        _assert_whole(pruner, selection, pruner.output_count(budget), patches, features)


@every_pruner
@pytest.mark.parametrize("budget", BUDGETS)
def test_selection_has_the_promised_count_of_unique_tokens(pruner: Pruner, budget: int) -> None:
    budget, signals = _budget(pruner, budget), random_signals([1, 2, 5])
    selection = pruner.select(_only_what_is_needed(pruner, signals), budget)
    _assert_whole(pruner, selection, pruner.output_count(budget), 576, signals.patch_tokens)


@every_pruner
def test_selection_is_deterministic_and_leaves_its_inputs_alone(pruner: Pruner) -> None:
    signals, untouched = random_signals([2, 1]), random_signals([2, 1])
    assert signals.tower is not None
    assert untouched.tower is not None
    for budget in (_budget(pruner, 64), _budget(pruner, 192)):
        first, second = pruner.select(signals, budget), pruner.select(signals, budget)
        for name in ("tokens", "indices", "guided"):
            assert torch.equal(getattr(first, name), getattr(second, name))
    for signal, value in untouched.values.items():
        assert torch.equal(signals[signal], value)
    assert torch.equal(signals.tower.embed(), untouched.tower.embed())


@every_pruner
@pytest.mark.parametrize("images", [1, 3, 8])
def test_selection_does_not_depend_on_batch_neighbours(pruner: Pruner, images: int) -> None:
    text_counts = [1, 2, 5, 4, 3, 1, 2, 4][:images]
    if not pruner.requires_text:
        text_counts[1:2] = [0] * len(text_counts[1:2])
    padded = random_signals([*text_counts, 5], seed=images).rows(range(images))
    budget = _budget(pruner, 58)
    together = pruner.select(padded, budget).unbind()
    assert len(together) == images
    for image, one in enumerate(together):
        [alone] = pruner.select(without_padding(padded, image), budget).unbind()
        _assert_same(alone, one)


def test_mixed_methods_and_budgets_give_what_each_image_gets_alone() -> None:
    pruners = [*PRUNERS, *PRUNERS[::-1]]
    patches = 144
    budgets = [
        _budget(pruner, [36, 1, 100, 7, 143, 36][number % 6], patches)
        for number, pruner in enumerate(pruners)
    ]
    text_counts = [1 + number % 4 for number in range(len(pruners))]
    signals = random_signals(text_counts, patches=patches)
    selections = _prune(signals, pruners, budgets)
    assert len(selections) == len(pruners)
    for image, (pruner, budget) in enumerate(zip(pruners, budgets, strict=True)):
        [alone] = pruner.select(without_padding(signals, image), budget).unbind()
        assert len(selections[image].indices) == budget
        _assert_same(selections[image], alone)


def test_needed_signals_are_those_of_all_methods_together() -> None:
    orders = [Order(build_pruner(name, {}), 9) for name in ("trim", "visionzip", "tome")]
    assert needed_signals(orders) == {
        *(Signal.FEATURES, Signal.SIMILARITY, Signal.CLS_ATTENTION),
        *(Signal.KEYS, Signal.TOWER),
    }
    assert needed_signals([]) == frozenset()


class Shortened(Pruner):
    """Promises ``promised`` tokens more than the budget, and returns ``returned`` more."""

    name: ClassVar[str] = "shortened"
    paper: ClassVar[str] = "none"
    promised: int = 0
    returned: int = 0

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.FEATURES})

    def output_count(self, budget: int) -> int:
        return budget + self.promised

    def select(self, signals: Signals, budget: int) -> Selection:
        indices = torch.arange(budget + self.returned).expand(signals.images, -1)
        return keep(signals, indices)


class Forgetful(Shortened):
    """Loses the last image of a batch."""

    def select(self, signals: Signals, budget: int) -> Selection:
        whole = super().select(signals, budget)
        return Selection(whole.tokens[:-1], whole.indices[:-1], whole.guided[:-1])


class Listed(Shortened):
    """An option that Python cannot hash."""

    rows: list[int]


def test_options_that_cannot_be_hashed_are_told_apart() -> None:
    signals = random_signals([1, 1, 1], patches=36)
    pruners: list[Pruner] = [Listed(rows=[1]), Listed(rows=[2]), Listed(rows=[1])]
    assert [len(one.indices) for one in _prune(signals, pruners, [9, 9, 9])] == [9, 9, 9]


@pytest.mark.parametrize(
    ("pruner", "found"),
    [
        (Shortened(promised=0, returned=-1), r"\[2, 8, 8\]; it promised \[2, 9\]"),
        (Shortened(promised=0, returned=1), r"\[2, 10, 8\]; it promised \[2, 9\]"),
        (Shortened(promised=2, returned=0), r"\[2, 9, 8\]; it promised \[2, 11\]"),
        (Forgetful(), r"\[1, 9, 8\]; it promised \[2, 9\]"),
    ],
)
def test_method_that_breaks_its_promise_is_named(pruner: Pruner, found: str) -> None:
    signals = random_signals([1, 1, 1], patches=36)
    with pytest.raises(RuntimeError, match=f"'shortened' returned tokens of shape {found}"):
        _prune(signals, [pruner, build_pruner("random", {}), pruner], [9, 9, 9])


def test_method_may_promise_another_count_than_the_budget() -> None:
    signals = random_signals([1], patches=36)
    [selection] = _prune(signals, [Shortened(promised=2, returned=2)], [9])
    assert selection.indices.tolist() == list(range(11))


@_each(KEEPING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_tokens_are_the_features_at_their_indices(pruner: Pruner, dtype: torch.dtype) -> None:
    signals = random_signals([1, 3], dtype=dtype)
    selection = pruner.select(signals, _budget(pruner, 128))
    for image, one in enumerate(selection.unbind()):
        patches = one.indices < 576
        assert patches.sum() >= 127
        expected = signals[Signal.FEATURES][image, 1 + one.indices[patches]]
        assert torch.equal(one.tokens[patches], expected)


@every_pruner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_give_nearly_the_tokens_of_float32(
    pruner: Pruner, dtype: torch.dtype
) -> None:
    # Of one block: over many, half precision may merge others than float32 does.
    half = random_signals([2, 1], dtype=dtype, layers=1)
    assert half.tower is not None
    full = with_values(half, {Signal.FEATURES: half[Signal.FEATURES].float()})
    tower = dataclasses.replace(half.tower, embedded=half.tower.embed().float())
    full = dataclasses.replace(full, tower=tower)
    for budget in (_budget(pruner, 64), _budget(pruner, 300)):
        found, expected = pruner.select(half, budget), pruner.select(full, budget)
        _assert_whole(pruner, found, budget, 576, half.patch_tokens)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.guided, expected.guided)
        rounding = torch.finfo(dtype).eps
        if pruner.name != "tome":  # computed in float32 and rounded once
            assert torch.equal(found.tokens, expected.tokens.to(dtype))
        torch.testing.assert_close(
            found.tokens.float(), expected.tokens, rtol=rounding, atol=4 * rounding
        )


@every_pruner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_towers_of_any_depth_give_whole_selections(
    pruner: Pruner, dtype: torch.dtype
) -> None:
    signals = random_signals([1], patches=144, dtype=dtype, layers=CLIP_LAYERS)
    for budget in (_budget(pruner, 1, 144), _budget(pruner, 36, 144)):
        _assert_whole(pruner, pruner.select(signals, budget), budget, 144, signals.patch_tokens)


@every_pruner
def test_batch_without_any_text_is_selected_by_the_rest(pruner: Pruner) -> None:
    if pruner.requires_text:
        assert pruner.reads_text
        return
    padded = random_signals([0, 0, 1]).rows([0, 1])
    bare = with_values(padded, {signal: torch.empty(2, 0, 576) for signal in TEXT_SIGNALS})
    for budget in (_budget(pruner, 64), _budget(pruner, 192)):
        selection = pruner.select(bare, budget)
        _assert_whole(pruner, selection, budget, 576, bare.patch_tokens)
        _assert_same(selection, pruner.select(padded, budget))
        assert not selection.guided.any()


def test_only_trim_of_the_built_in_methods_needs_a_text() -> None:
    refusing = {pruner.name for pruner in PRUNERS if pruner.requires_text}
    assert refusing & {
        "trim",
        "prumerge",
        "prumerge+",
        "visionzip",
        "prunesid",
        "tome",
        *SELECTING,
    } == {"trim"}


@every_pruner
def test_budget_of_all_patches_keeps_them_all(pruner: Pruner) -> None:
    signals = random_signals([1, 3])
    selection = pruner.select(signals, 576)
    _assert_whole(pruner, selection, 576, 576, signals.patch_tokens)
    if pruner.name not in SELECTING:
        return
    for indices in selection.indices.tolist():
        first_context = pruner.name == "litelvlm" and _order(pruner) != "raster"
        assert (sorted(indices) if first_context else indices) == list(range(576))


def _order(pruner: Pruner) -> str:
    options = pruner.model_dump()
    of_variant = "raster" if options["variant"] == "paper" else "context_first"
    return str(options["order"] or of_variant)


@every_pruner
def test_only_methods_that_read_the_text_ask_for_its_scores(pruner: Pruner) -> None:
    assert bool(pruner.needs & TEXT_SIGNALS) == pruner.reads_text


#: What carries one vector a token; every other signal carries one score a patch.
VECTORS = frozenset({Signal.FEATURES, Signal.PROJECTED, Signal.KEYS, Signal.LAST_KEYS})


def _first_token(vectors: Tensor) -> Tensor:
    return vectors[:, :1].expand_as(vectors).clone()


def _tied(score: float) -> Callable[[Tensor], Tensor]:
    return lambda scores: torch.full_like(scores, score)


#: Which signals become what; FEATURES goes for the tower's own input too.
DEGENERATE: dict[str, tuple[frozenset[Signal], Callable[[Tensor], Tensor]]] = {
    "equal tokens": (frozenset({Signal.FEATURES, Signal.PROJECTED}), _first_token),
    "equal keys": (frozenset({Signal.KEYS, Signal.LAST_KEYS}), _first_token),
    "equal vectors": (VECTORS, _first_token),
    "zero vectors": (VECTORS, torch.zeros_like),
    "tied scores": (frozenset(Signal) - VECTORS, _tied(0.25)),
    "zero scores": (frozenset(Signal) - VECTORS, torch.zeros_like),
    "tied ones": (frozenset(Signal), torch.ones_like),
    "all zero": (frozenset(Signal), torch.zeros_like),
}


@every_pruner
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_inputs_give_whole_selections(pruner: Pruner, kind: str) -> None:
    changed, change = DEGENERATE[kind]
    signals = random_signals([1, 3], patches=144, layers=4)
    assert signals.tower is not None
    if Signal.FEATURES in changed:
        tower = dataclasses.replace(signals.tower, embedded=change(signals.tower.embed()))
        signals = dataclasses.replace(signals, tower=tower)
    values = {s: change(value) for s, value in signals.values.items() if s in changed}
    signals = with_values(signals, values)
    for budget in sorted({_budget(pruner, budget, 144) for budget in (1, 2, 36, 100, 143, 144)}):
        selection = pruner.select(signals, budget)
        _assert_whole(pruner, selection, budget, 144, signals.patch_tokens)


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
    signals = Signals(
        images=2,
        patches=576,
        device=hidden.device,
        text_counts=[2, 1],
        values={
            Signal.FEATURES: hidden,
            Signal.PROJECTED: torch.randn(2, 576, 48),
            Signal.TOKEN_COSINE: torch.randn(2, 2, 576),
            Signal.WORD_COSINE: torch.randn(2, 5, 576),
            **scorer.image_signals(hidden, feature_input, pruner.needs),
            **scorer.text_signals(hidden, texts, pruner.needs),
        },
        tower=made_up_tower(2, width=32, layers=2, dtype=dtype),
        word_counts=[5, 3],
    )
    for signal in pruner.needs - {Signal.FEATURES, Signal.TOWER}:
        assert signals[signal].dtype == torch.float32
    budget = _budget(pruner, 64)
    _assert_whole(pruner, pruner.select(signals, budget), budget, 576, hidden)


def _without_texts(pruner: Pruner, signals: Signals) -> Signals:
    """What a base may read."""
    needed = _only_what_is_needed(pruner, signals)
    values = {name: value for name, value in needed.values.items() if name not in TEXT_SIGNALS}
    return dataclasses.replace(needed, values=values)


def _assert_layers(pruner: Pruner, signals: Signals, base: int, focus: int) -> None:
    """Both layers have what they promise, without a patch in common, at every call."""
    patches, untexted = signals.patches, _without_texts(pruner, signals)
    members = pruner.choose_base(untexted, base)
    assert members.shape == (signals.images, patches)
    assert members.dtype == torch.bool
    assert members.sum(dim=-1).tolist() == [base] * signals.images
    before = members.clone()
    needed = _only_what_is_needed(pruner, signals)
    selection = pruner.choose_focus(needed, members, focus)
    _assert_whole(pruner, selection, focus, patches, signals.patch_tokens)
    assert not members.gather(1, selection.indices).any()
    assert torch.equal(pruner.choose_base(untexted, base), members)
    _assert_same(pruner.choose_focus(needed, members, focus), selection)
    assert torch.equal(members, before)


@every_layered_pruner
@pytest.mark.parametrize(
    ("base", "focus"), [(1, 1), (48, 16), (144, 48), (575, 1), (1, 575), (300, 276)]
)
def test_layers_have_the_promised_counts_and_share_nothing(
    pruner: Pruner, base: int, focus: int
) -> None:
    _assert_layers(pruner, random_signals([1, 2, 0, 5]), base, focus)


@every_layered_pruner
def test_layers_of_small_images_share_nothing_up_to_all_patches(pruner: Pruner) -> None:
    for patches in (4, 9):
        for base in range(1, patches):
            for focus in range(1, patches - base + 1):
                _assert_layers(pruner, random_signals([1, 3, 0], patches=patches), base, focus)


@every_layered_pruner
@pytest.mark.parametrize("kind", DEGENERATE)
def test_layers_of_degenerate_inputs_share_nothing(pruner: Pruner, kind: str) -> None:
    changed, change = DEGENERATE[kind]
    signals = random_signals([1, 3], patches=144, layers=1)
    signals = with_values(
        signals, {s: change(value) for s, value in signals.values.items() if s in changed}
    )
    for base, focus in [(1, 1), (27, 9), (72, 72)]:
        _assert_layers(pruner, signals, base, focus)


@every_layered_pruner
def test_base_is_the_same_whatever_the_texts(pruner: Pruner) -> None:
    signals = _without_texts(pruner, random_signals([1, 2, 5]))
    untexted = dataclasses.replace(signals, text_counts=[0, 0, 0])
    assert torch.equal(pruner.choose_base(signals, 48), pruner.choose_base(untexted, 48))


@every_layered_pruner
@pytest.mark.parametrize("images", [1, 3, 8])
def test_layers_do_not_depend_on_batch_neighbours(pruner: Pruner, images: int) -> None:
    text_counts = [1, 0, 5, 4, 3, 1, 2, 0][:images]
    padded = random_signals([*text_counts, 5], seed=images).rows(range(images))
    bases = pruner.choose_base(_without_texts(pruner, padded), 48)
    together = pruner.choose_focus(padded, bases, 16).unbind()
    for image, one in enumerate(together):
        lonely = without_padding(padded, image)
        base = pruner.choose_base(_without_texts(pruner, lonely), 48)
        assert torch.equal(base[0], bases[image])
        [alone] = pruner.choose_focus(lonely, base, 16).unbind()
        _assert_same(alone, one)


@every_layered_pruner
def test_focus_without_any_text_goes_on_unguided(pruner: Pruner) -> None:
    padded = random_signals([0, 0, 1]).rows([0, 1])
    bare = with_values(padded, {signal: torch.empty(2, 0, 576) for signal in TEXT_SIGNALS})
    base = pruner.choose_base(_without_texts(pruner, bare), 48)
    selection = pruner.choose_focus(bare, base, 16)
    _assert_same(selection, pruner.choose_focus(padded, base, 16))
    assert not selection.guided.any()


@every_layered_pruner
def test_layers_of_a_mixed_batch_are_those_of_each_image_alone(pruner: Pruner) -> None:
    signals = random_signals([1, 3, 0, 2], patches=144)
    orders = [
        Order(pruner, 16, Layer.FOCUS, base=48),
        Order(pruner, 48, Layer.BASE, base=48),
        Order(pruner, 16, Layer.FOCUS, base=32),
        Order(pruner, 16),
    ]
    bases = choose_bases(signals.rows([0, 1, 2]), orders[:3])
    first, second, third, whole = prune(signals, orders, [*bases, None])
    alone = [without_padding(signals, image) for image in range(4)]
    for image, focus in ((0, first), (2, third)):
        base = pruner.choose_base(_without_texts(pruner, alone[image]), orders[image].base)
        [expected] = pruner.choose_focus(alone[image], base, 16).unbind()
        _assert_same(focus, expected)
    [base] = pruner.choose_base(_without_texts(pruner, alone[1]), 48)
    assert second.indices.tolist() == base.nonzero().flatten().tolist()
    assert not second.guided.any()
    _assert_same(whole, pruner.select(alone[3], 16).unbind()[0])


def test_methods_that_do_not_choose_in_layers_say_so() -> None:
    signals, pruner = random_signals([1]), build_pruner("random", {})
    base = torch.zeros(1, 576, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="random does not choose in layers"):
        pruner.choose_base(signals, 9)
    with pytest.raises(NotImplementedError, match="random does not choose in layers"):
        pruner.choose_focus(signals, base, 9)


def test_unknown_method_is_refused_by_naming_those_there_are() -> None:
    with pytest.raises(
        OptionsError, match="'method' is \"magic\"; allowed: litelvlm, fovea, random"
    ):
        pruner_class("magic")


def test_random_draws_differ_by_seed_and_nest_by_budget() -> None:
    signals = random_signals([1])

    def draw(seed: int, budget: int) -> set[int]:
        [indices] = build_pruner("random", {"seed": seed}).select(signals, budget).indices.tolist()
        return set(indices)

    assert draw(1, 64) < draw(1, 128)
    assert draw(1, 64) != draw(2, 64)


@pytest.mark.parametrize(
    ("name", "signal"),
    [("context", Signal.CONTEXT), ("cls-attention", Signal.CLS_ATTENTION)],
)
def test_score_methods_keep_the_highest_in_raster_order(name: str, signal: Signal) -> None:
    signals = random_signals([1])
    scores = signals[signal][0].tolist()
    selection = build_pruner(name, {}).select(signals, 50)
    expected = sorted(sorted(range(576), key=lambda patch: -scores[patch])[:50])
    assert selection.indices.tolist() == [expected]
    assert not selection.guided.any()
