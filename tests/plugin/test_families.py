"""What holds for every family: its class, what it offers, and what it refuses by name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import ModelRegistry
from vllm.model_executor.models.interfaces import supports_mrope, supports_multimodal_pruning

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.command.tuning.space import BY_MODEL
from vllm_litelvlm.options import PruningOptions, parse_server_options
from vllm_litelvlm.plugin.models.pruned import Batch, PrunedModel
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.plugin.served import MODELS, family, family_of
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.pruning.registry import (
    build_pruner,
    method_names,
    offered_methods,
    pruner_for,
)
from vllm_litelvlm.pruning.traits import Traits

KINDS = [
    pytest.param(traits, id=traits.family) for name in MODELS for traits in family(name).kinds()
]


#: vLLM's own architecture of one that it does not have.
OF = {"LlavaSegForConditionalGeneration": "LlavaForConditionalGeneration"}


@pytest.mark.parametrize("architecture", MODELS)
def test_class_is_vllms_own_with_ours_before_it(installed: None, architecture: str) -> None:
    served = ModelRegistry._try_load_model_cls(architecture)
    assert served is not None
    assert f"{served.__module__}:{served.__name__}" == MODELS[architecture]
    own = OF.get(architecture, architecture)
    ours, stock = (
        next(place for place, one in enumerate(served.__mro__) if found(one))
        for found in (lambda one: one is PrunedModel, lambda one: one.__name__ == own)
    )
    assert ours < stock
    assert supports_mrope(served)
    assert supports_multimodal_pruning(served)
    found = family_of(SimpleNamespace(architectures=["Unknown", architecture]))
    assert found is family(architecture) is served.litelvlm_family


@pytest.mark.parametrize("traits", KINDS)
def test_methods_are_offered_where_their_signals_are(traits: Traits) -> None:
    offered = offered_methods(traits)
    assert {"litelvlm", "fovea", "random", "keep-all"} <= {*offered}
    for method in method_names():
        options = PruningOptions(method=method)
        if method in offered:
            assert pruner_for(options, traits).needs <= traits.signals
        else:
            with pytest.raises(OptionsError, match=f'"{method}\\\\?\\+?", which goes by') as told:
                pruner_for(options, traits)
            assert traits.family in str(told.value)
            assert ", ".join(offered) in str(told.value)


@pytest.mark.parametrize("traits", KINDS)
def test_memory_profile_runs_methods_as_the_family_has_them(traits: Traits) -> None:
    methods = offered_methods(traits)
    profile = Profile.model_validate({"methods": methods, "parameters": traits.parameters})
    assert profile.needs <= traits.signals


@pytest.mark.parametrize("traits", KINDS)
def test_a_methods_option_may_ask_for_a_signal_that_is_not_there(traits: Traits) -> None:
    options = PruningOptions(method="fovea", parameters={"guidance": "value"})
    if Signal.VALUE in traits.signals:
        assert pruner_for(options, traits) == build_pruner("fovea", {"guidance": "value"})
    else:
        with pytest.raises(OptionsError, match="goes by value as it is asked for"):
            pruner_for(options, traits)


@pytest.mark.parametrize("traits", KINDS)
def test_layers_and_frames_are_refused_where_they_mean_nothing(traits: Traits) -> None:
    for options, there in (
        (PruningOptions(method="fovea", focus=0.25), traits.layered),
        (PruningOptions(frame="pad"), traits.crops),
    ):
        if there:
            pruner_for(options, traits)
        else:
            with pytest.raises(OptionsError, match="leave it out"):
                pruner_for(options, traits)


@pytest.mark.parametrize(
    ("given", "tokens", "expected"),
    [
        ({"budget": 64}, 30, 30),
        ({"budget": 64}, 300, 64),
        ({"budget": 0.25}, 300, 75),
        ({"budget": 0.001}, 300, 1),
        ({"budget": 0.01, "min_budget": 8}, 300, 8),
        ({"budget": 0.01, "min_budget": 8}, 5, 5),
        ({"budget": 0.5, "max_budget": 100}, 300, 100),
        ({"budget": 1.0, "max_budget": 100}, 60, 60),
    ],
)
def test_budgets_fit_an_image_of_any_size(
    given: dict[str, Any], tokens: int, expected: int
) -> None:
    server = parse_server_options(given)
    assert server.fitted_budget(server.defaults, tokens) == expected


class _Load:
    """Media of which only the load is asked."""

    def __init__(self, load: list[int]) -> None:
        self.load = load
        self.device = torch.device("cpu")

    @property
    def tokens(self) -> list[int]:
        return self.load

    def some(self, images: slice) -> "_Load":
        return _Load(self.load[images])


def test_step_is_split_by_unpruned_tokens() -> None:
    load = [10, 20, 30, 100, 5, 5]
    nothing: Any = [None] * len(load)
    keys = [bytes([one]) for one in range(6)]
    batch = Batch(_Load(load), keys, nothing, nothing, nothing, list("abcdef"))
    parts = [(part.media.load, list(part.keys)) for part in batch.parts(room=50)]
    assert [loads for loads, _ in parts] == [[10, 20], [30], [100], [5, 5]]
    assert [key for _, keys in parts for key in keys] == list(batch.keys)


def test_tuning_names_every_option_whose_default_is_a_models_own() -> None:
    found: dict[str, set[str]] = {}
    for architecture in MODELS:
        for traits in family(architecture).kinds():
            for method, options in traits.parameters.items():
                found.setdefault(method, set()).update(options)
    assert found == BY_MODEL
