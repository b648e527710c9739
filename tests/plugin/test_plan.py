"""Plans: what enters the cache identity, and what the worker gets."""

import dataclasses
from typing import Any

import pytest

from vllm_litelvlm.options import ServerOptions, parse_request_options
from vllm_litelvlm.plugin.plan import Plan, WorkOrder
from vllm_litelvlm.pruning.keep_all import KeepAll


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
        decide(budget=64, method="random"),
        decide(budget=64, method="random", seed=1),
    ]
    assert len({plan.to_json(), *(other.to_json() for other in others)}) == len(others) + 1


def test_defaults_spelled_out_are_the_same_identity() -> None:
    spelled = decide(budget=64, variant="paper", share=None, direction="low", context=True)
    assert spelled.to_json() == decide(budget=64).to_json()
    assert decide(budget=192).to_json() == decide().to_json()


@pytest.mark.parametrize(
    "options",
    [{"budget": 576}, {"budget": 1.0}, {"method": "random", "budget": 576}, {"method": "keep-all"}],
)
def test_keeping_everything_is_one_identity(options: dict[str, Any]) -> None:
    plan = decide(**options)
    assert plan == Plan(KeepAll.name, {}, 576)


def test_worker_gets_method_parameters_and_budget() -> None:
    plan = decide(budget=64, share=0.25, variant="reference")
    order = WorkOrder.decode(WorkOrder.encode(plan))
    assert order.pruner == plan.pruner
    assert order.budget == 64
