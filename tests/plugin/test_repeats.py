"""Which texts guide a request about an image that came with other texts before."""

import random

import pytest

from vllm_litelvlm.plugin.repeats import Repeats

PATCHES = 576


def guides(repeats: Repeats, texts: str, budget: int = 64, prompt: int = 58) -> list[str]:
    """Whose texts guide, for one-letter texts one after the other about one image."""
    return [
        "".join(repeats.guiding(b"image", (text,), budget + prompt, PATCHES - budget, most=64))
        for text in texts
    ]


def test_full_prunes_for_the_first_text_alone_and_again_for_it() -> None:
    repeats = Repeats()
    assert [repeats.is_first(b"a", (text,)) for text in "xyxz"] == [True, False, True, False]
    assert repeats.is_first(b"b", ("y",))


@pytest.mark.parametrize(
    ("budget", "guiding"),
    [
        (64, ["a", "b", "c", "d", "abcde", "abcde", "abcde"]),
        (128, ["a", "b", "abc", "abc", "abc", "abc", "abc"]),
        (192, ["a", "ab", "ab", "ab", "ab", "ab", "ab"]),
        (288, ["a", "a", "a", "a", "a", "a", "a"]),
    ],
)
def test_texts_guide_for_themselves_until_a_set_of_all_so_far_is_shared(
    budget: int, guiding: list[str]
) -> None:
    assert guides(Repeats(), "abcdefg", budget) == guiding


def test_same_texts_guide_again_at_no_cost_until_there_is_a_shared_set() -> None:
    repeats = Repeats()
    assert guides(repeats, "aaaabbbbaaaa") == list("aaaabbbbaaaa")
    assert guides(repeats, "cdefab") == ["c", "d", *["bacde"] * 4]


def test_texts_that_come_back_later_in_a_conversation_cost_what_was_said_since() -> None:
    repeats = Repeats()
    lengths = [("a", 100), ("b", 150), ("a", 200), ("b", 250)]
    guided = [repeats.guiding(b"a", (text,), length, 500, 64) for text, length in lengths]
    assert guided == [("a",), ("b",), ("a",), ("b", "a")]  # 150 + 100, then 100 and 250 to come


def test_several_texts_of_a_request_are_one_and_their_borders_count() -> None:
    repeats = Repeats()
    requests = [("x", "y"), ("y", "x"), ("xy",), ("z",)]
    guided = [repeats.guiding(b"a", texts, 100, 350, most=64) for texts in requests]
    assert guided == [("x", "y"), ("y", "x"), ("xy",), ("x", "y", "xy", "z")]


def test_shared_set_holds_the_latest_texts_where_there_are_too_many() -> None:
    repeats = Repeats()
    guided = [repeats.guiding(b"a", (text,), 10, 45, most=2) for text in "abcdef"]
    assert guided[-1] == ("d", "e")


def test_longer_prompts_of_a_conversation_leave_the_latest_set_where_no_new_one_is_affordable() -> (
    None
):
    repeats = Repeats()
    lengths = {"a": 100, "b": 150, "c": 400, "d": 450}
    guided = [repeats.guiding(b"a", (text,), length, 500, 64) for text, length in lengths.items()]
    assert guided == [("a",), ("b",), ("b",), ("b",)]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("seed", range(50))
def test_all_requests_together_prefill_no_more_than_without_pruning(seed: int, chat: bool) -> None:
    order = random.Random(seed)
    budget, repeats, prefilled, stock = order.randint(1, 575), Repeats(), 0, 0
    cached: dict[tuple[str, ...], int] = {}  # by the set of the tokens kept
    prompt = budget
    for number in range(order.randint(2, 60)):
        new = order.randint(1, 80)
        prompt = prompt + new if chat else budget + new
        text = str(order.randint(0, order.choice([3, 60])))
        guided = repeats.guiding(b"a", (text,), prompt, PATCHES - budget, most=64)
        prefilled += prompt - cached.get(guided, 0)
        cached[guided] = prompt if chat else budget
        stock += new + (PATCHES if number == 0 else 0)
        assert prefilled <= stock


def test_image_that_nobody_asked_about_lately_is_new_again() -> None:
    repeats = Repeats(most_images=2)
    for key in (b"a", b"b", b"a", b"c"):
        repeats.is_first(key, ("x",))
    assert not repeats.is_first(b"a", ("y",))
    assert repeats.is_first(b"b", ("y",))
