"""Which requests about a known image are pruned, and which get it whole."""

from typing import Literal

import pytest

from vllm_litelvlm.plugin.repeats import Repeats

Repeat = Literal["full", "auto"]


def asks(
    repeats: Repeats, repeat: Repeat, texts: str, budget: int = 64, images: str = "a"
) -> list[bool]:
    """Whether each of the one-letter texts, one after the other, prunes the images."""
    keys = [image.encode() for image in images]
    return [repeats.prunes(keys, [text], budget, repeat) for text in texts]


def test_full_prunes_by_the_first_text_alone_and_again_by_it() -> None:
    repeats = Repeats(patches=576)
    assert asks(repeats, "full", "xyxz") == [True, False, True, False]
    assert asks(repeats, "full", "y", images="b") == [True]


@pytest.mark.parametrize(("budget", "texts"), [(64, 9), (128, 4), (192, 3), (288, 2), (300, 1)])
def test_auto_prunes_while_all_texts_keep_no_more_tokens_than_the_image_has(
    budget: int, texts: int
) -> None:
    asked = "abcdefghijkl"
    pruned = asks(Repeats(patches=576), "auto", asked, budget)
    assert pruned == [number < texts for number in range(len(asked))]


def test_auto_counts_each_text_once_and_with_its_own_budget() -> None:
    repeats = Repeats(patches=576)
    assert asks(repeats, "auto", "xxxxxxxxxxxx") == [True] * 12
    assert asks(repeats, "auto", "y", budget=500) == [True]  # 64 + 500
    assert asks(repeats, "auto", "z") == [False]
    assert asks(repeats, "auto", "w", budget=12) == [True]
    assert asks(repeats, "auto", "xy") == [True, True]


def test_several_texts_of_a_request_are_one_and_their_borders_count() -> None:
    repeats = Repeats(patches=576)
    assert repeats.prunes([b"a"], ["x", "y"], 64, "full")
    assert repeats.prunes([b"a"], ["x", "y"], 64, "full")
    assert not repeats.prunes([b"a"], ["y", "x"], 64, "full")
    assert not repeats.prunes([b"a"], ["xy"], 64, "full")


def test_request_is_pruned_only_if_all_of_its_images_are() -> None:
    repeats = Repeats(patches=576)
    assert asks(repeats, "full", "x", images="a") == [True]
    assert asks(repeats, "full", "y", images="ab") == [False]
    assert asks(repeats, "full", "y", images="b") == [True]  # b was not pruned then
    assert asks(repeats, "full", "z", images="cc") == [True]  # twice the same is no repeat
    assert asks(repeats, "full", "z", images="c") == [True]


def test_image_that_nobody_asked_about_lately_is_new_again() -> None:
    repeats = Repeats(patches=576, most_images=2)
    asks(repeats, "full", "x", images="a")
    asks(repeats, "full", "x", images="b")
    assert asks(repeats, "full", "y", images="a") == [False]  # and used, so b goes first
    asks(repeats, "full", "x", images="c")
    assert asks(repeats, "full", "y", images="b") == [True]


def test_request_with_more_images_than_are_remembered_is_served() -> None:
    repeats = Repeats(patches=576, most_images=2)
    assert asks(repeats, "auto", "x", images="abcd") == [True]
