"""Methods confined to the part of the grid that shows a picture."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.pruning.helpers import random_signals
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import PruningOptions
from vllm_litelvlm.pruning.base import CLS, Selection, Signal, Signals
from vllm_litelvlm.pruning.batch import choose_bases, prune
from vllm_litelvlm.pruning.order import Layer, Order
from vllm_litelvlm.pruning.registry import build_pruner, method_names, settle
from vllm_litelvlm.pruning.window import Window

WIDE = Window(24, top=6, bottom=18, left=0, right=24)
HIGH = Window(24, top=0, bottom=24, left=9, right=15)
CONFINED = [name for name in method_names() if name != "tome"]


def cut_out(signals: Signals, window: Window) -> Signals:
    """The signals of an image that consists of the window alone, by plain indexing."""
    inside = torch.zeros(24, 24, dtype=torch.bool)
    inside[window.top : window.bottom, window.left : window.right] = True
    numbers = inside.flatten().nonzero()[:, 0]

    def cut(name: Signal, value: Tensor) -> Tensor:
        if name is Signal.FEATURES:
            return torch.cat([value[:, :1], value[:, 1:][:, numbers]], dim=1)
        if name in (Signal.KEYS, Signal.LAST_KEYS, Signal.PROJECTED):
            return value[:, numbers]
        return value[..., numbers]

    values = {name: cut(name, value) for name, value in signals.values.items()}
    return dataclasses.replace(
        signals,
        patches=len(numbers),
        values=values,
        tower=None,
        row_length=window.right - window.left,
    )


def test_window_lists_its_patches_in_raster_order() -> None:
    small = Window(4, top=1, bottom=3, left=2, right=4)
    assert small.numbers() == [6, 7, 10, 11]
    assert small.patches == 4


@pytest.mark.parametrize("method", CONFINED)
@pytest.mark.parametrize("window", [WIDE, HIGH], ids=["wide", "high"])
def test_method_chooses_as_if_there_were_the_window_alone(method: str, window: Window) -> None:
    signals = random_signals([2, 1, 1])
    pruner = build_pruner(method, {})
    budget = window.patches if method == "keep-all" else 40
    selections = prune(signals, [Order(pruner, budget, window=window)] * 3, [None] * 3)
    expected = pruner.select(cut_out(signals, window), budget).unbind()
    numbers = window.numbers()
    for found, alone in zip(selections, expected, strict=True):
        assert torch.equal(found.tokens, alone.tokens)
        assert torch.equal(found.guided, alone.guided)
        places = [
            CLS
            if one == CLS
            else numbers[one]
            if one < window.patches
            else one - len(numbers) + 576
            for one in alone.indices.tolist()
        ]
        assert found.indices.tolist() == places
        assert {one for one in places if 0 <= one < 576} <= set(numbers)


def test_windows_of_a_batch_do_not_mix() -> None:
    signals = random_signals([1, 1, 1, 1])
    pruner = build_pruner("fovea", {})
    orders = [Order(pruner, 30, window=one) for one in (None, WIDE, HIGH, WIDE)]
    together = prune(signals, orders, [None] * 4)
    for image, order in enumerate(orders):
        [alone] = prune(signals.rows([image]), [order], [None])
        assert torch.equal(together[image].indices, alone.indices)


@pytest.mark.parametrize("method", ["fovea", "litelvlm"])
def test_layers_stay_in_the_window_and_are_as_in_it_alone(method: str) -> None:
    signals = random_signals([1, 1])
    pruner = build_pruner(method, {})
    base_orders = [Order(pruner, 30, Layer.BASE, 30, WIDE), Order(pruner, 30, Layer.BASE, 30)]
    bases = choose_bases(signals, base_orders)
    numbers = torch.tensor(WIDE.numbers())
    inside = cut_out(signals, WIDE)
    alone = pruner.choose_base(inside, 30)
    assert bases.sum(dim=1).tolist() == [30, 30]
    assert torch.equal(bases[0, numbers], alone[0])
    focus_orders = [dataclasses.replace(one, layer=Layer.FOCUS) for one in base_orders]
    [first, _] = prune(signals, focus_orders, list(bases))
    [kept, _] = prune(signals, base_orders, list(bases))
    expected: Selection = pruner.choose_focus(inside, alone, 30)
    assert torch.equal(first.indices, numbers[expected.indices[0]])
    assert kept.indices.tolist() == bases[0].nonzero()[:, 0].tolist()
    assert not set(first.indices.tolist()) & set(kept.indices.tolist())


@pytest.mark.parametrize(
    ("budget", "settled"),
    [(0.25, 72), (1.0, 288), (64, 64), (288, 288), (300, 288), (576, 288), (0.0001, 1)],
)
def test_fraction_is_one_of_the_window_and_a_larger_count_all_of_it(
    budget: float, settled: int
) -> None:
    options = PruningOptions(budget=budget, method="random", frame="pad")
    pruner, found = settle(options, 576, WIDE)
    assert found == settled
    assert pruner.name == ("keep-all" if settled == 288 else "random")


def test_method_inside_the_tower_is_refused_with_padding() -> None:
    with pytest.raises(OptionsError, match="\"pad\", but method 'tome' merges tokens inside"):
        settle(PruningOptions(method="tome", frame="pad"), 576)
    with pytest.raises(OptionsError, match="at most 576"):
        settle(PruningOptions(budget=577, frame="pad"), 576, WIDE)
