"""What the words of an answer say of its [SEG]s."""

import pytest

from vllm_litelvlm.grounding.conversation import named


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Sure, it is ", "Sure, it is"),
        ("", ""),
        (" \n", ""),
        ("The <p> red cup </p> ", "red cup"),
        ("<p>a man</p> and <p>his\ndog</p>", "his\ndog"),
        ("The <p> red cup </p> stands here: ", "The <p> red cup </p> stands here:"),
        ("a < b ", "a < b"),
    ],
)
def test_name_is_the_phrase_in_front_or_all_words(words: str, name: str) -> None:
    assert named([words, "x"]) == [name, "x"]


def test_long_answers_are_read_at_once() -> None:
    assert named(["<p>" * 100_000]) == ["<p>" * 100_000]
