"""Options: where they come from, what they mean, what the server bounds."""

from typing import Any

import pytest

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import (
    PruningOptions,
    ServerOptions,
    parse_request_options,
    parse_server_options,
)
from vllm_litelvlm.pruning.registry import build_pruner


def test_request_comes_before_server_and_server_before_defaults() -> None:
    server = parse_server_options({"budget": 128, "guide": "all", "share": 0.25})
    merged = parse_request_options({"budget": 64, "variant": "reference"}, server)
    assert (merged.budget, merged.guide, merged.method) == (64, "all", "litelvlm")
    assert merged.parameters == {"share": 0.25, "variant": "reference"}


def test_no_options_are_the_servers() -> None:
    server = parse_server_options({"budget": 128})
    assert parse_request_options(None, server) == server.defaults
    assert parse_request_options({}, server) == server.defaults


def test_parameters_of_the_servers_method_do_not_reach_another_method() -> None:
    server = parse_server_options({"share": 0.25})
    merged = parse_request_options({"method": "random", "seed": 3}, server)
    assert merged.parameters == {"seed": 3}
    assert build_pruner(merged.method, merged.parameters)


@pytest.mark.parametrize(
    ("budget", "patches", "tokens"),
    [
        (64, 576, 64),
        (576, 576, 576),
        (1, 576, 1),
        (1.0, 576, 576),
        (1 / 3, 576, 192),
        (0.0001, 576, 1),
        (0.5, 5, 3),
        (0.25, 256, 64),
    ],
)
def test_budget_is_a_count_or_a_fraction_that_rounds_half_up(
    budget: Any, patches: int, tokens: int
) -> None:
    assert parse_request_options({"budget": budget}, ServerOptions()).budget_tokens(patches) == (
        tokens
    )


def test_budget_above_the_images_tokens_is_refused() -> None:
    with pytest.raises(OptionsError, match="'budget' is 577; allowed: at most 576"):
        PruningOptions(budget=577).budget_tokens(576)


def test_default_budget_is_a_third() -> None:
    assert PruningOptions().budget_tokens(576) == 192


def test_one_text_is_a_list_of_one() -> None:
    assert parse_request_options({"texts": "a cat"}, ServerOptions()).texts == ("a cat",)
    assert parse_request_options({"texts": ["a", "b"]}, ServerOptions()).texts == ("a", "b")


def test_lone_surrogates_become_replacement_characters() -> None:
    merged = parse_request_options({"texts": "\ud800 赤い車 🚗"}, ServerOptions())
    assert merged.texts == ("\ufffd 赤い車 🚗",)


@pytest.mark.parametrize(
    ("server", "request_options", "sentence"),
    [
        ({"min_budget": 64}, {"budget": 63}, "comes to 63 tokens; this server allows 64 to all"),
        ({"max_budget": 192}, {"budget": 0.5}, "comes to 288 tokens; this server allows 1 to 192"),
        ({"max_texts": 2}, {"texts": ["a", "b", "c"]}, "has 3 texts; this server allows at most 2"),
        ({"max_text_length": 3}, {"texts": ["abc", "abcd"]}, "a text of 4 characters"),
    ],
)
def test_server_bounds_what_requests_ask_for(
    server: Any, request_options: Any, sentence: str
) -> None:
    bounds = parse_server_options(server)
    merged = parse_request_options(request_options, bounds)
    with pytest.raises(OptionsError, match=sentence):
        bounds.check_request(merged, merged.budget_tokens(576))


def test_server_can_take_no_options_at_all() -> None:
    server = parse_server_options({"request_options": False, "budget": 64})
    assert parse_request_options(None, server).budget == 64
    with pytest.raises(OptionsError, match=r"\['budget'\] were sent, but this server does not"):
        parse_request_options({"budget": 64}, server)


@pytest.mark.parametrize("name", ["parameters", "defaults", "min_budget", "Budget"])
def test_request_cannot_set_what_is_not_its_own(name: str) -> None:
    merged = parse_request_options({name: {}}, ServerOptions())
    with pytest.raises(OptionsError, match=f"'{name}' is unknown; allowed: budget, context"):
        build_pruner(merged.method, merged.parameters)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(OptionsError) as raised:
        parse_request_options({"budget": "9" * 10**6}, ServerOptions())
    assert len(str(raised.value)) < 400
    assert "1000002 characters" in str(raised.value)
