"""Where the items of a request stand in its prompt."""

import random
from typing import Any

import pytest

from vllm_litelvlm.options import ServerOptions, parse_request_options
from vllm_litelvlm.plugin.layers import (
    Call,
    Item,
    Layout,
    calls,
    guiding_texts,
    one_layer,
    two_layers,
)
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.turns import Turn
from vllm_litelvlm.pruning.order import Layer

IMAGE, PATCHES = 7, 576


def plan(budget: int = 64) -> Plan:
    return Plan.decide(parse_request_options({"budget": budget}, ServerOptions()), PATCHES)


def lay_out(
    prompt: list[int], found: list[Call], *, budget: int = 64, focus: int = 16, block: int = 0
) -> Layout:
    images = prompt.count(IMAGE)
    return two_layers(
        prompt,
        IMAGE,
        [plan(budget)] * images,
        found,
        focuses=[focus] * images,
        patches=PATCHES,
        block=block,
    )


def drawn(layout: Layout) -> str:
    """A prompt as text: bases as ``B0:48``, focuses as ``F0:16[texts]``."""
    items = iter(layout.items)
    words = []
    for token in layout.prompt:
        if token != IMAGE:
            words.append(str(token))
            continue
        item = next(items)
        letter = {Layer.WHOLE: "W", Layer.BASE: "B", Layer.FOCUS: "F"}[item.plan.layer]
        texts = f"[{'|'.join(item.plan.texts)}]" if item.plan.layer is Layer.FOCUS else ""
        words.append(f"{letter}{item.image}:{item.plan.budget}{texts}")
    assert next(items, None) is None
    return " ".join(words)


def test_one_layer_leaves_the_prompt_as_it_is() -> None:
    layout = one_layer([1, IMAGE, 2, IMAGE], [plan()] * 2)
    assert drawn(layout) == "1 W0:64 2 W1:64"
    assert layout.items[0] == Item(0, plan())


def test_every_turn_brings_a_focus_for_each_image_so_far() -> None:
    prompt = [1, IMAGE, 2, 3, 4, IMAGE, 5, 6, 8]
    found = [Call(2, ("a",)), Call(6, ("b",)), Call(8, ("c",))]
    assert drawn(lay_out(prompt, found)) == (
        "1 B0:48 F0:16[a] 2 3 4 B1:48 F0:16[b] F1:16[b] 5 6 F0:16[c] F1:16[c] 8"
    )


def test_call_behind_the_last_token_is_answered_there() -> None:
    assert drawn(lay_out([1, IMAGE], [Call(2, ())])) == "1 B0:48 F0:16[]"


def test_calls_that_are_all_alike_are_answered_for_new_images_only() -> None:
    prompt = [1, IMAGE, 2, IMAGE, 3, 4]
    found = [Call(place, ("a",), only_new=True) for place in (2, 4, 5)]
    assert drawn(lay_out(prompt, found)) == "1 B0:48 F0:16[a] 2 B1:48 F1:16[a] 3 4"


def test_base_carries_neither_text_nor_focus_and_a_focus_its_base() -> None:
    base, focus = lay_out([1, IMAGE], [Call(2, ("a",))]).items
    assert (base.plan.texts, base.plan.base, base.plan.budget) == ((), 48, 48)
    assert (focus.plan.texts, focus.plan.base, focus.plan.budget) == (("a",), 48, 16)
    [other, _] = lay_out([1, IMAGE], [Call(2, ("b",))]).items
    assert other.plan.to_json() == base.plan.to_json()


@pytest.mark.parametrize(
    ("before", "block", "base"),
    [
        (5, 0, 48),
        (5, 16, 43),  # ends at 48
        (15, 16, 49),  # ends at 64
        (0, 16, 48),
        (5, 32, 59),  # ends at 64, and leaves a focus of 5
        (14, 32, 50),
        (5, 128, 48),  # no block ends near
        (70, 128, 58),
        (8, 64, 56),
        (22, 48, 48),  # neither end of a block leaves a fair focus
    ],
)
def test_base_ends_with_a_block_where_that_leaves_a_fair_focus(
    before: int, block: int, base: int
) -> None:
    layout = lay_out([1] * before + [IMAGE], [Call(before + 1, ())], block=block)
    tokens = [item.plan.budget for item in layout.items]
    assert tokens == [base, 64 - base]


def test_images_of_a_conversation_never_take_more_than_unpruned() -> None:
    turns = 60
    prompt, found = [1, IMAGE], [Call(2, ("0",))]
    for number in range(1, turns):
        prompt += [2, 3]
        found.append(Call(len(prompt), (str(number),)))
    kept = sum(item.plan.budget for item in lay_out(prompt, found).items)
    assert kept == 48 + 33 * 16 == PATCHES
    # With one image more there is room again, first of all for the newest.
    prompt += [IMAGE]
    found.append(Call(len(prompt), ("new",)))
    last = [item for item in lay_out(prompt, found).items if item.plan.texts == ("new",)]
    assert [item.image for item in last] == [0, 1]


def made_up(seed: int) -> tuple[list[int], list[Call], list[int]]:
    """A prompt, its calls, and how long the prompt is after each turn."""
    draw = random.Random(seed)
    prompt, found, ends = [1] * draw.randint(1, 9), [], []
    for number in range(draw.randint(1, 12)):
        images = draw.randint(1 if number == 0 else 0, 3)
        prompt += [IMAGE] * images
        if not images:
            prompt += [2]
        found.append(Call(len(prompt), (str(number),)))
        prompt += [3] * draw.randint(1, 20)
        ends.append(len(prompt))
    return prompt, found, ends


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("block", [0, 16, 32])
def test_what_stands_anywhere_depends_on_nothing_behind_it(seed: int, block: int) -> None:
    prompt, found, ends = made_up(seed)
    budget, focus = random.Random(seed).choice([(64, 16), (29, 7), (192, 48), (288, 144)])
    whole = drawn(lay_out(prompt, found, budget=budget, focus=focus, block=block))
    for turn, end in enumerate(ends):
        part = lay_out(prompt[:end], found[: turn + 1], budget=budget, focus=focus, block=block)
        assert (whole + " ").startswith(drawn(part) + " ")
    first = [item.plan for item in lay_out(prompt, found[:1], budget=budget, focus=focus).items]
    assert first[0].budget == budget - focus


@pytest.mark.parametrize(
    ("guide", "texts"),
    [("last", ("three",)), ("first", ("one",)), ("all", ("one", "two", "three"))],
)
def test_turns_without_words_do_not_guide(guide: Any, texts: tuple[str, ...]) -> None:
    assert guiding_texts(["", "one", "two", "three", ""], guide, 64) == texts
    assert guiding_texts(["", ""], guide, 64) == ()


def test_latest_of_too_many_texts_guide() -> None:
    assert guiding_texts(["one", "two", "three"], "all", 2) == ("two", "three")


def texts_of(**options: Any) -> list[tuple[tuple[str, ...], bool]]:
    turns = [Turn("", 2), Turn("one", 5), Turn("", 8), Turn("two", 9)]
    parsed = parse_request_options(options, ServerOptions())
    found = calls(turns, parsed, 64)
    assert [call.place for call in found] == [2, 5, 8, 9]
    return [(call.texts, call.only_new) for call in found]


def test_turn_is_guided_by_its_own_words_or_the_last_before() -> None:
    assert texts_of() == [((), False), (("one",), False), (("one",), False), (("two",), False)]
    assert texts_of(guide="all")[2:] == [(("one",), False), (("one", "two"), False)]


def test_words_that_hold_for_all_turns_are_for_new_images() -> None:
    assert texts_of(guide="first")[1:] == [(("one",), True)] * 3
    assert texts_of(texts=["a", "b"]) == [(("a", "b"), True)] * 4
