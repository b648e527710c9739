"""Plans: what enters the cache identity, and what the worker gets."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_litelvlm import __version__
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import ServerOptions, parse_request_options, parse_server_options
from vllm_litelvlm.plugin.config import settle_options
from vllm_litelvlm.plugin.parcel import Parcel, pack
from vllm_litelvlm.plugin.plan import Plan, WorkOrder
from vllm_litelvlm.plugin.planner import Planner
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.registry import method_names
from vllm_litelvlm.pruning.traits import Traits


def decide(**options: Any) -> Plan:
    return Plan.decide(parse_request_options(options, ServerOptions()), patches=576)


def test_plan_survives_its_json() -> None:
    plan = dataclasses.replace(decide(budget=64, share=0.25), texts=("a", "赤"))
    assert Plan.from_json(plan.to_json()) == plan


def test_identity_holds_everything_that_decides_what_is_kept() -> None:
    plan = dataclasses.replace(decide(budget=64), texts=("a",))
    others = [
        dataclasses.replace(plan, texts=("b",)),
        dataclasses.replace(plan, texts=("a", "a")),
        dataclasses.replace(plan, budget=65),
        dataclasses.replace(plan, version="another"),
        dataclasses.replace(decide(budget=64, variant="reference"), texts=("a",)),
        dataclasses.replace(decide(budget=64, positions="original"), texts=("a",)),
        plan.base_of(64),
        plan.focus_on(("a",), 1),
        plan.focus_on(("a",), 2),
        decide(budget=64, method="random"),
        decide(budget=64, method="random", seed=1),
    ]
    assert len({plan.to_json(), *(other.to_json() for other in others)}) == len(others) + 1


def test_defaults_spelled_out_are_the_same_identity() -> None:
    spelled = decide(budget=64, variant="paper", share=None, direction=None, context=True)
    assert spelled.to_json() == decide(budget=64).to_json()
    assert decide(budget=192).to_json() == decide().to_json()


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 1.0},
        {"budget": 1.0, "positions": "original"},
        {"method": "keep-all"},
        {"method": "keep-all", "positions": "original"},
        *({"method": method, "budget": 576} for method in method_names()),
    ],
)
def test_keeping_everything_is_one_identity(options: dict[str, Any]) -> None:
    plan = decide(**options)
    assert plan == Plan(KeepAll.name, {}, 576)


def test_worker_gets_method_parameters_and_budget() -> None:
    plan = decide(budget=64, share=0.25, variant="reference")
    order = WorkOrder.decode(WorkOrder.encode(plan))
    assert order.pruner == plan.pruner
    assert order.budget == 64
    assert not order.original
    placed = decide(budget=64, positions="original")
    assert WorkOrder.decode(WorkOrder.encode(placed)).original
    for layer in (plan.base_of(48), plan.focus_on(("a",), 48)):
        order = WorkOrder.decode(WorkOrder.encode(layer))
        assert (order.layer, order.base, order.budget) == (layer.layer, 48, layer.budget)


def test_json_is_canonical_and_plain_ascii() -> None:
    plan = Plan("litelvlm", {"b": 1, "a": None}, 64, ("赤い \ufffd",))
    swapped = Plan("litelvlm", {"a": None, "b": 1}, 64, ("赤い \ufffd",))
    assert plan.to_json() == swapped.to_json()
    assert plan.to_json().isascii()
    assert json.loads(plan.to_json()) == {
        "base": 0,
        "budget": 64,
        "layer": "whole",
        "method": "litelvlm",
        "original": False,
        "parameters": {"a": None, "b": 1},
        "texts": ["赤い \ufffd"],
        "version": __version__,
        "window": None,
    }


@pytest.mark.parametrize("method", [*method_names()])
@pytest.mark.parametrize("texts", [(), ("a",), ("a", "", 'b"\\\n', "👩‍👩‍👧")])
def test_plan_of_every_method_survives_both_ways(method: str, texts: tuple[str, ...]) -> None:
    plan = dataclasses.replace(decide(method=method, budget=64), texts=texts)
    back = Plan.from_json(plan.to_json())
    assert back == plan
    assert back.to_json() == plan.to_json()
    order = WorkOrder.decode(WorkOrder.encode(plan))
    assert (order.pruner, order.budget) == (back.pruner, back.budget)
    assert order.pruner.name == method


def test_work_order_is_bytes_without_the_texts() -> None:
    plan = decide(budget=64)
    encoded = WorkOrder.encode(dataclasses.replace(plan, texts=("secret",)))
    assert encoded == WorkOrder.encode(plan)
    assert b"secret" not in encoded


@pytest.mark.parametrize("texts", [0, 1, 5])
def test_parcel_comes_out_as_it_went_in(texts: int) -> None:
    plan = decide(budget=64, method="random", seed=2**40)
    ids = torch.arange(texts * 7, dtype=torch.int32).view(texts, 7)
    words = torch.arange(2 * texts, dtype=torch.int32) + 90
    sent = pack(plan, b"of a picture", ids, words, "0a1b")
    assert (sent.dtype, sent.dim()) == (torch.uint8, 1)
    parcel = Parcel.unpack(sent)
    assert parcel.order == WorkOrder.decode(WorkOrder.encode(plan))
    assert parcel.key == b"of a picture"
    assert parcel.name == "0a1b"
    assert parcel.text_ids.dtype == torch.int32
    assert torch.equal(parcel.text_ids, ids)
    assert torch.equal(parcel.word_ids, words)


def test_work_orders_of_equal_options_share_one_pruner_to_group_by() -> None:
    first = WorkOrder.decode(WorkOrder.encode(decide(budget=64, share=0.5)))
    second = WorkOrder.decode(WorkOrder.encode(decide(budget=128, share=0.5)))
    other = WorkOrder.decode(WorkOrder.encode(decide(budget=64, share=0.25)))
    assert len({first.pruner, second.pruner, other.pruner}) == 2
    assert (first.budget, second.budget) == (64, 128)


def test_whole_and_broken_numbers_of_one_value_are_one_identity() -> None:
    assert decide(budget=64, share=1).to_json() == decide(budget=64, share=1.0).to_json()
    assert decide(budget=288).to_json() == decide(budget=0.5).to_json()


def test_options_that_are_not_allowed_are_refused_even_where_all_tokens_stay() -> None:
    with pytest.raises(OptionsError, match="'share' is 7"):
        decide(budget=576, share=7)
    with pytest.raises(OptionsError, match="'budget' is 577"):
        decide(budget=577, method="keep-all")
    with pytest.raises(OptionsError, match="'method' is \"magic\""):
        decide(method="magic")


class _Turns:
    """Stands for the reader of instructions, and tells whether it was asked."""

    def __init__(self, *turns: str) -> None:
        self.turns = list(turns)
        self.asked = 0

    def texts(self, prompt: object) -> list[str]:
        self.asked += 1
        return self.turns


def settle(turns: _Turns, server: dict[str, Any] | None = None, **options: Any) -> Plan:
    """The processor's decision for a request with an image, without an engine."""
    bounds = parse_server_options(server or {})
    traits = Traits("LLaVA-1.5", tokens=576)
    settings: Any = SimpleNamespace(server=bounds, block=0)
    reader: Any = turns
    planner = Planner(traits, settings, 7, None, lambda: reader)
    said, focus = settle_options(options, bounds, traits)
    layout = planner.lay_out(said, focus, bounds, [1, 7], [planner.plan(said, bounds, 576)], None)
    [item] = layout.items
    return item.plan


@pytest.mark.parametrize(
    "options",
    [
        {"method": "random", "budget": 64},
        {"method": "context", "budget": 64},
        {"method": "cls-attention", "budget": 64},
        {"method": "keep-all"},
        {"budget": 576},
    ],
)
def test_texts_are_left_out_where_they_have_no_influence(options: dict[str, Any]) -> None:
    turns = _Turns("a cup?")
    plan = settle(turns, texts=["a", "b"], **options)
    assert plan.texts == ()
    assert plan == settle(turns, **options)
    assert turns.asked == 0


@pytest.mark.parametrize(
    ("guide", "texts"),
    [("last", ("third",)), ("first", ("one",)), ("all", ("one", "two", "third"))],
)
def test_guide_names_the_turns(guide: str, texts: tuple[str, ...]) -> None:
    assert settle(_Turns("one", "two", "third"), guide=guide).texts == texts


def test_named_texts_come_before_the_instruction() -> None:
    turns = _Turns("a cup?")
    assert settle(turns, texts=["b", "a"], guide="all").texts == ("b", "a")
    assert turns.asked == 0


def test_empty_turns_give_no_text_and_the_newest_fit_the_servers_bound() -> None:
    assert settle(_Turns("one", "", "two", ""), guide="all").texts == ("one", "two")
    assert settle(_Turns("one", ""), guide="last").texts == ("one",)
    many = _Turns(*(str(number) for number in range(9)))
    assert settle(many, {"max_texts": 2}, guide="all").texts == ("7", "8")


def test_bounds_of_the_server_hold_for_methods_that_read_no_text_too() -> None:
    with pytest.raises(OptionsError, match="comes to 64 tokens; this server allows 100 to all"):
        settle(_Turns(), {"min_budget": 100, "budget": 128}, method="random", budget=64)
    with pytest.raises(OptionsError, match="comes to 576 tokens; this server allows 1 to 192"):
        settle(_Turns(), {"max_budget": 192}, method="keep-all")
