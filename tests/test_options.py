"""What users may ask for: merging, rounding, bounds, and a sentence for every refusal."""

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from vllm_litelvlm.errors import LiteLVLMError, OptionsError
from vllm_litelvlm.options import (
    COMMON_OPTIONS,
    SERVER_OPTIONS,
    PruningOptions,
    ServerOptions,
    parse_request_options,
    parse_server_options,
)
from vllm_litelvlm.pruning.registry import build_pruner, settle_focus

BUDGET = "a token count (whole number from 1) or a fraction of the image's tokens (0 < number <= 1)"
TEXTS = "one non-empty text or a non-empty list of them"
SERVER = parse_server_options(
    {"budget": 128, "texts": "the red car", "guide": "all", "share": 0.25, "order": "raster"}
)


def refusal(data: Any, server: ServerOptions | None = None) -> str:
    with pytest.raises(OptionsError) as raised:
        parse_request_options(data, server or ServerOptions())
    return str(raised.value)


def server_refusal(data: Any) -> str:
    with pytest.raises(OptionsError) as raised:
        parse_server_options(data)
    return str(raised.value)


# Merging


@pytest.mark.parametrize("nothing", [None, {}])
def test_defaults_hold_where_nobody_sets_anything(nothing: Any) -> None:
    options = parse_request_options(nothing, parse_server_options(nothing))
    assert options == PruningOptions()
    assert options.budget == pytest.approx(1 / 3)
    assert (options.texts, options.guide, options.method) == (None, "last", "litelvlm")
    assert options.parameters == {}


@pytest.mark.parametrize("nothing", [None, {}])
def test_server_options_hold_where_a_request_sets_nothing(nothing: Any) -> None:
    assert parse_request_options(nothing, SERVER) == SERVER.defaults
    assert SERVER.defaults.budget == 128
    assert SERVER.defaults.texts == ("the red car",)
    assert SERVER.defaults.parameters == {"share": 0.25, "order": "raster"}


@pytest.mark.parametrize(
    ("name", "value", "merged"),
    [
        ("budget", 64, 64),
        ("budget", 0.5, 0.5),
        ("texts", ["a dog", "a cat"], ("a dog", "a cat")),
        ("guide", "first", "first"),
        ("method", "random", "random"),
    ],
)
def test_request_wins_over_the_server_option_by_option(name: str, value: Any, merged: Any) -> None:
    options = parse_request_options({name: value}, SERVER)
    assert getattr(options, name) == merged
    for other in set(COMMON_OPTIONS) - {name}:
        assert getattr(options, other) == getattr(SERVER.defaults, other)


def test_method_parameters_merge_one_by_one() -> None:
    options = parse_request_options({"share": 0.75, "direction": "high"}, SERVER)
    assert options.parameters == {"share": 0.75, "order": "raster", "direction": "high"}


def test_naming_the_servers_own_method_keeps_its_parameters() -> None:
    options = parse_request_options({"method": "litelvlm", "share": 1}, SERVER)
    assert options.parameters == {"share": 1, "order": "raster"}


def test_naming_another_method_drops_the_servers_parameters() -> None:
    options = parse_request_options({"method": "random", "seed": 3}, SERVER)
    assert options.parameters == {"seed": 3}
    assert options.budget == 128


def test_merging_changes_neither_side() -> None:
    given = {"budget": 64, "share": 0.5}
    before = SERVER.model_copy(deep=True)
    parse_request_options(given, SERVER)
    assert given == {"budget": 64, "share": 0.5}
    assert before == SERVER


def test_options_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PruningOptions().budget = 3  # type: ignore[misc]


def test_server_options_survive_json() -> None:
    carried = json.loads(json.dumps(SERVER.model_dump()))
    # JSON has no tuples: `texts` comes back as a list.
    assert ServerOptions.model_validate(carried) == SERVER


# Budget


@pytest.mark.parametrize(
    ("budget", "patches", "tokens"),
    [
        (1, 576, 1),
        (576, 576, 576),
        (1 / 3, 576, 192),
        (2 / 9, 576, 128),
        (1 / 9, 576, 64),
        (0.05, 576, 29),  # 28.8
        (0.5, 577, 289),  # 288.5: a half rounds up, not to even
        (0.5, 575, 288),  # 287.5
        (0.25, 10, 3),  # 2.5
        (0.125, 100, 13),  # 12.5
        (0.1, 4, 1),  # 0.4: at least 1
        (1e-300, 576, 1),
        (1.0, 576, 576),
        (64.0, 576, 64),
        (math.nextafter(1, 0), 576, 576),
    ],
)
def test_budget_in_tokens(budget: float, patches: int, tokens: int) -> None:
    options = parse_request_options({"budget": budget}, ServerOptions())
    assert options.budget_tokens(patches) == tokens


def test_one_is_a_count_and_one_point_zero_is_everything() -> None:
    assert PruningOptions(budget=1).budget_tokens(576) == 1
    assert PruningOptions(budget=1.0).budget_tokens(576) == 576


@pytest.mark.parametrize("budget", [577, 10**9, 10**30])
def test_count_above_the_images_tokens_is_refused(budget: int) -> None:
    with pytest.raises(OptionsError) as raised:
        PruningOptions(budget=budget).budget_tokens(576)
    assert f"'budget' is {budget}; allowed: at most 576" in str(raised.value)


@pytest.mark.parametrize(
    "budget",
    [
        0,
        -1,
        0.0,
        -0.0,
        -0.5,
        1.0000001,
        64.5,
        True,
        False,
        "many",
        [64],
        {"a": 1},
        math.nan,
        math.inf,
        -math.inf,
    ],
)
def test_other_budget_is_refused_by_naming_it(budget: Any) -> None:
    assert refusal({"budget": budget}) == (
        f"litelvlm option 'budget' is {json.dumps(budget)}; allowed: {BUDGET}."
    )


@pytest.mark.parametrize("budget", ["64", "0.5", "1e2"])
def test_budget_in_quotes_is_refused_with_a_hint(budget: str) -> None:
    assert refusal({"budget": budget}).endswith(
        f"'budget' is \"{budget}\"; allowed: {BUDGET}. Write it without quotes: {budget}."
    )


# Texts


@pytest.mark.parametrize(
    ("texts", "parsed"),
    [
        ("the red car", ("the red car",)),
        (["the red car"], ("the red car",)),
        (("a", "b"), ("a", "b")),
        (["a", "a"], ("a", "a")),
        (["  a\n"], ("  a\n",)),
        ("赤い車", ("赤い車",)),
        (["سيارة حمراء", "🚗"], ("سيارة حمراء", "🚗")),
        ("e\u0301", ("e\u0301",)),
        ("\0", ("\0",)),
    ],
)
def test_texts_are_one_text_or_a_list(texts: Any, parsed: tuple[str, ...]) -> None:
    assert parse_request_options({"texts": texts}, ServerOptions()).texts == parsed


@pytest.mark.parametrize(
    "texts",
    [
        "",
        " ",
        "\n\t\u3000",
        [],
        (),
        [""],
        ["a", " "],
        ["a", None],
        [["a"]],
        5,
        0,
        True,
        {"a": "b"},
        b"a",
        {"a"},
    ],
)
def test_other_texts_are_refused_by_naming_them(texts: Any) -> None:
    shown = repr(texts) if isinstance(texts, bytes | set) else json.dumps(texts, ensure_ascii=False)
    assert refusal({"texts": texts}) == (f"litelvlm option 'texts' is {shown}; allowed: {TEXTS}.")


@pytest.mark.parametrize(
    ("spelled", "read"),
    [
        (r'"a \ud83d"', "a \ufffd"),
        (r'"\ude00 a"', "\ufffd a"),
        (r'"\ude00\ud83d"', "\ufffd\ufffd"),
        (r'"\ud83d\ude00"', "😀"),
        (r'"\ud83d"', "\ufffd"),
    ],
)
def test_lone_surrogates_of_json_become_replacement_characters(spelled: str, read: str) -> None:
    given = json.loads(f'{{"texts": [{spelled}]}}')
    options = parse_request_options(given, ServerOptions())
    assert options.texts == (read,)
    assert options.texts[0].encode("utf-8").decode("utf-8") == read


def test_surrogates_that_only_a_python_caller_can_make_are_joined() -> None:
    assert PruningOptions(texts=("\ud83d" + "\ude00",)).texts == ("😀",)


# The other options


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"guide": "any"}, '\'guide\' is "any"; allowed: "last", "first" or "all"'),
        ({"guide": "LAST"}, '\'guide\' is "LAST"; allowed: "last", "first" or "all"'),
        ({"method": 3}, "'method' is 3; allowed: the name of a pruning method"),
    ],
)
def test_other_guide_or_method_is_refused(given: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(given)


@pytest.mark.parametrize(
    ("method", "parameters", "value", "allowed"),
    [
        ("litelvlm", {"share": 1.5}, "1.5", "a number from 0 to 1, or null"),
        ("litelvlm", {"share": -0.1}, "-0.1", "a number from 0 to 1, or null"),
        ("litelvlm", {"share": math.nan}, "NaN", "a number from 0 to 1, or null"),
        ("litelvlm", {"share": "0.5"}, '"0.5"', "a number from 0 to 1, or null"),
        ("litelvlm", {"share": True}, "true", "a number from 0 to 1, or null"),
        ("litelvlm", {"variant": "arxiv"}, '"arxiv"', '"paper" or "reference"'),
        ("litelvlm", {"direction": "up"}, '"up"', '"low" '),
        ("litelvlm", {"context": 1}, "1", "true or false"),
        ("litelvlm", {"order": "random"}, '"random"', '"raster", "context_first", or null'),
        ("context", {"variant": "both"}, '"both"', '"paper" '),
        ("random", {"seed": -1}, "-1", "a whole number from 0"),
        ("random", {"seed": 2**63}, str(2**63), "a whole number from 0"),
        ("random", {"seed": 1.5}, "1.5", "a whole number from 0"),
    ],
)
def test_parameter_of_a_method_is_refused_by_naming_it(
    method: str, parameters: dict[str, Any], value: str, allowed: str
) -> None:
    [name] = parameters
    with pytest.raises(OptionsError) as raised:
        build_pruner(method, parameters)
    assert f"litelvlm option '{name}' is {value}; allowed: {allowed}" in str(raised.value)


@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        (
            "litelvlm",
            "budget, context, direction, focus, frame, guidance, guide, method, order, positions, "
            "share, texts, variant",
        ),
        ("random", "budget, focus, frame, guide, method, positions, seed, texts"),
        ("keep-all", "budget, focus, frame, guide, method, positions, texts"),
    ],
)
def test_unknown_option_is_refused_by_naming_those_of_the_method(method: str, allowed: str) -> None:
    options = parse_request_options({"method": method, "bugdet": 64}, ServerOptions())
    with pytest.raises(OptionsError) as raised:
        build_pruner(options.method, options.parameters)
    assert str(raised.value) == f"litelvlm option 'bugdet' is unknown; allowed: {allowed}."


@pytest.mark.parametrize("name", ["parameters", "defaults", "clip_model", "max_budget", "Budget"])
def test_request_cannot_reach_what_is_not_its_own(name: str) -> None:
    options = parse_request_options({name: 5}, ServerOptions())
    assert options.budget == PruningOptions().budget
    with pytest.raises(OptionsError, match=f"option '{name}' is unknown"):
        build_pruner(options.method, options.parameters)


@pytest.mark.parametrize("data", [[], "budget", 5, True, [{"budget": 1}], {1: 2}, {None: 1}])
def test_options_that_are_no_object_are_refused(data: Any) -> None:
    sentence = 'allowed: an object such as {"budget": 128, "texts": ["the red car"]}.'
    shown = json.dumps(data)
    assert refusal(data) == f"the request's litelvlm options are {shown}; {sentence}"
    assert server_refusal(data) == f"the server's litelvlm options are {shown}; {sentence}"


def test_object_in_a_text_is_refused_with_a_hint() -> None:
    assert refusal('{"budget": 64}').endswith("Send the object itself, not a text that holds it.")


NULLS: dict[str, Any] = dict.fromkeys([*COMMON_OPTIONS, "share", "order", "direction"])


def test_null_was_not_given() -> None:
    options = parse_request_options(NULLS, SERVER)
    assert [getattr(options, name) for name in COMMON_OPTIONS] == [
        getattr(SERVER.defaults, name) for name in COMMON_OPTIONS
    ]
    assert build_pruner("litelvlm", options.parameters) == build_pruner(
        "litelvlm", SERVER.defaults.parameters
    )
    assert parse_server_options(dict.fromkeys(SERVER_OPTIONS)) == ServerOptions()
    other = parse_request_options({**NULLS, "method": "random", "seed": None}, SERVER)
    assert build_pruner(other.method, {"seed": None}) == build_pruner("random", {})


def test_null_of_an_unknown_option_is_refused_like_any_other_value() -> None:
    options = parse_request_options({"bugdet": None}, ServerOptions())
    with pytest.raises(OptionsError, match="'bugdet' is unknown"):
        build_pruner(options.method, options.parameters)


def test_whole_numbers_may_be_written_as_floats() -> None:
    assert build_pruner("random", {"seed": 3.0}) == build_pruner("random", {"seed": 3})
    assert parse_server_options({"max_budget": 192.0, "max_texts": 8.0}) == parse_server_options(
        {"max_budget": 192, "max_texts": 8}
    )


def test_long_value_is_shown_by_its_beginning_and_length() -> None:
    sentence = refusal({"budget": "9" * 10_000})
    assert '"999' in sentence
    assert "... (10002 characters)" in sentence
    assert len(sentence) < 300


def test_refusal_is_one_of_our_errors_which_pydantic_passes_on_as_it_is() -> None:
    assert issubclass(OptionsError, LiteLVLMError)
    assert not issubclass(OptionsError, ValueError)


# What the operator decides


@pytest.mark.parametrize(
    ("given", "value", "allowed"),
    [
        ({"min_budget": 0}, "0", "a whole number from 1"),
        ({"min_budget": 0.5}, "0.5", "a whole number from 1"),
        ({"max_budget": 0}, "0", "a whole number from 1"),
        ({"max_budget": True}, "true", "a whole number from 1"),
        ({"max_texts": 0}, "0", "a whole number from 1"),
        ({"max_texts": "3"}, '"3"', "a whole number from 1"),
        ({"max_text_length": 0}, "0", "a whole number of characters from 1"),
        ({"methods": "litelvlm"}, '"litelvlm"', "a non-empty list of method names"),
        ({"methods": [1]}, "1", "a non-empty list of method names"),
        ({"request_options": 0}, "0", "true or false"),
        ({"request_options": "true"}, '"true"', "true or false"),
        ({"clip_model": ""}, '""', "the name on the Hugging Face hub, or the folder"),
        ({"clip_model": 5}, "5", "the name on the Hugging Face hub, or the folder"),
        ({"max_budget": 32, "min_budget": 64}, "32", "at least min_budget, 64"),
        ({"budget": 0}, "0", BUDGET),
        ({"texts": []}, "[]", TEXTS),
    ],
)
def test_server_option_is_refused_by_naming_it(
    given: dict[str, Any], value: str, allowed: str
) -> None:
    name = next(iter(given))
    assert f"litelvlm option '{name}' is {value}; allowed: {allowed}" in server_refusal(given)


def test_equal_bounds_are_allowed() -> None:
    server = parse_server_options({"min_budget": 64, "max_budget": 64, "budget": 64})
    server.check_request(server.defaults, 64)
    assert (server.min_budget, server.max_budget) == (64, 64)


@pytest.mark.parametrize(
    ("bounds", "budget", "allowed"),
    [
        ({"min_budget": 64}, 63, "64 to all tokens"),
        ({"max_budget": 192}, 193, "1 to 192"),
        ({"min_budget": 64, "max_budget": 192}, 576, "64 to 192"),
    ],
)
def test_budget_outside_the_bounds_is_refused(
    bounds: dict[str, int], budget: int, allowed: str
) -> None:
    server = parse_server_options(bounds)
    with pytest.raises(OptionsError) as raised:
        server.check_request(PruningOptions(budget=budget), budget)
    assert f"'budget' comes to {budget} tokens; this server allows {allowed}." in str(raised.value)


@pytest.mark.parametrize(
    ("budget", "allowed"),
    [(63, False), (64, True), (192, True), (193, False), (0.1, False), (1 / 3, True), (0.5, False)],
)
def test_bounds_hold_for_the_merged_budget_in_tokens(budget: float, allowed: bool) -> None:
    server = parse_server_options({"min_budget": 64, "max_budget": 192, "budget": 128})
    merged = parse_request_options({"budget": budget}, server)
    if allowed:
        server.check_request(merged, merged.budget_tokens(576))
    else:
        with pytest.raises(OptionsError, match=r"tokens; this server allows 64 to 192\."):
            server.check_request(merged, merged.budget_tokens(576))


def test_focus_of_the_server_holds_for_its_own_method() -> None:
    server = parse_server_options({"method": "fovea", "focus": 0.25})
    assert parse_request_options({"budget": 64}, server).focus == 0.25
    assert parse_request_options({"method": "fovea"}, server).focus == 0.25
    assert parse_request_options({"method": "litelvlm"}, server).focus == 0
    assert parse_request_options({"method": "litelvlm", "focus": 0.5}, server).focus == 0.5
    assert parse_request_options({"focus": 0}, server).focus == 0


@pytest.mark.parametrize("focus", [-0.1, 1, 1.5, "0.5", True, float("nan")])
def test_focus_that_is_no_share_is_refused(focus: object) -> None:
    with pytest.raises(OptionsError, match=r"'focus' is .*; allowed: a number from 0"):
        parse_request_options({"focus": focus}, ServerOptions())


@pytest.mark.parametrize(
    ("budget", "focus", "tokens"), [(64, 0.25, 16), (64, 0.001, 1), (3, 0.5, 2)]
)
def test_focus_is_a_share_of_the_budget_and_never_nothing(
    budget: int, focus: float, tokens: int
) -> None:
    options = PruningOptions(focus=focus)
    assert settle_focus(options, build_pruner("litelvlm", {}), budget) == tokens
    assert settle_focus(options, build_pruner("keep-all", {}), 576) == 0
    assert settle_focus(PruningOptions(), build_pruner("random", {}), budget) == 0


def test_focus_is_refused_where_it_cannot_be() -> None:
    options = PruningOptions(focus=0.5)
    with pytest.raises(OptionsError, match="'tome' does not choose in layers; these do: litelvlm"):
        settle_focus(options, build_pruner("tome", {}), 64)
    with pytest.raises(OptionsError, match="comes to 1 of 1 tokens and leaves none for a base"):
        settle_focus(options, build_pruner("litelvlm", {}), 1)


def test_original_positions_are_refused_where_the_server_was_not_started_for_them() -> None:
    placing, plain = parse_server_options({"positions": "original"}), ServerOptions()
    original = parse_request_options({"positions": "original"}, plain)
    compact = parse_request_options({"positions": "compact"}, placing)
    assert parse_request_options({"budget": 64}, placing).positions == "original"
    assert parse_request_options({"budget": 64}, plain).positions == "compact"
    for server, options in ((placing, original), (placing, compact), (plain, compact)):
        server.check_request(options, 64)
    with pytest.raises(
        OptionsError, match="'positions' is \"original\", which this server was not"
    ):
        plain.check_request(original, 64)
    with pytest.raises(OptionsError, match='\'positions\' is "own"; allowed: "compact" or'):
        parse_request_options({"positions": "own"}, plain)


def test_number_and_length_of_texts_are_bounded() -> None:
    server = parse_server_options({"max_texts": 2, "max_text_length": 5})
    server.check_request(PruningOptions(texts=("12345", "😀😀😀😀😀")), 64)
    with pytest.raises(OptionsError, match="'texts' has 3 texts; this server allows at most 2"):
        server.check_request(PruningOptions(texts=("a", "a", "a")), 64)
    with pytest.raises(OptionsError, match=r"a text of 6 characters; .* at most 5 \(CLIP reads 77"):
        server.check_request(PruningOptions(texts=("a", "123456")), 64)


def test_texts_are_bounded_without_any_server_option() -> None:
    server = ServerOptions()
    server.check_request(PruningOptions(texts=("x" * 4096,) * 64), 64)
    with pytest.raises(OptionsError, match="65 texts"):
        server.check_request(PruningOptions(texts=("x",) * 65), 64)
    with pytest.raises(OptionsError, match="4097 characters"):
        server.check_request(PruningOptions(texts=("x" * 4097,)), 64)


def test_server_may_refuse_every_request_option() -> None:
    server = parse_server_options({"request_options": False, "budget": 64})
    assert parse_request_options(None, server).budget == 64
    sentence = refusal({"texts": "a", "budget": 64}, server)
    assert '["budget", "texts"] were sent' in sentence
    assert "does not take options from requests; leave them out" in sentence


def test_number_of_too_many_digits_to_print_is_refused() -> None:
    merged = parse_request_options({"budget": 10**5000}, ServerOptions())
    with pytest.raises(OptionsError, match="a number of too many digits; allowed: at most 576"):
        merged.budget_tokens(576)
    with pytest.raises(OptionsError, match="a number of too many digits"):
        parse_request_options({"budget": -(10**5000)}, ServerOptions())


def test_no_options_at_all_pass_a_server_that_takes_none() -> None:
    server = parse_server_options({"request_options": False, "budget": 64})
    assert parse_request_options({}, server) == server.defaults


def test_variant_is_a_set_of_options_over_the_servers_own() -> None:
    server = parse_server_options(
        {
            "budget": 96,
            "focus": 0.25,
            "method": "fovea",
            "variants": {"fast": {"budget": 64}, "rough.2": {"method": "random", "seed": 3}},
        }
    )
    fast = server.of("fast").defaults
    assert (fast.budget, fast.method, fast.focus) == (64, "fovea", 0.25)
    rough = server.of("rough.2").defaults
    assert (rough.budget, rough.method, rough.focus) == (96, "random", 0)
    assert rough.parameters == {"seed": 3}
    assert server.of(None) is server
    assert parse_request_options({"budget": 32}, server.of("rough.2")).parameters == {"seed": 3}
    assert parse_request_options(None, server.of("fast")) == fast
    assert ServerOptions.model_validate(server.model_dump()) == server


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        ("fast", r"""option 'variants' are "fast"; allowed: an object of names to sets"""),
        ({"": {}}, r"""has the name ""; allowed: .*letters, digits"""),
        ({"a:b": {}}, r"""has the name "a:b"; allowed: .*letters, digits"""),
        ({"fast": 64}, r"Variant 'fast': the options of litelvlm variant 'fast' are 64; allowed"),
        ({"fast": {"budget": 0}}, r"Variant 'fast': litelvlm option 'budget' is 0; allowed"),
        (
            {"fast": {"budget": 64, "guide": "?"}},
            r"""Variant 'fast': .* 'guide' is "\?"; allowed""",
        ),
    ],
)
def test_variant_that_is_not_allowed_is_named(variants: object, sentence: str) -> None:
    with pytest.raises(OptionsError, match=sentence):
        parse_server_options({"variants": variants})


def test_original_positions_of_any_variant_are_installed() -> None:
    server = parse_server_options({"variants": {"boxes": {"positions": "original"}}})
    assert server.original_positions
    assert server.defaults.positions == "compact"
