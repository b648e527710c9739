"""Which words of a text say something of an image."""

from typing import Any

import pytest

from vllm_litelvlm.vision.words import MOST_WORDS, telling_words, word_ids


class Letters:
    """A tokenizer with a token a letter."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What is the color of the cup?", "color of cup"),
        ("Where are they? Answer the question using a single word or phrase.", "Where are they?"),
        ("left-most ZEBRA", "left most ZEBRA"),
        ("", ""),
        ("\u732b\u306f\u3069\u3053", "\u732b\u306f\u3069\u3053"),
    ],
)
def test_words_that_show_nothing_are_left_out_where_others_are_there(text: str, words: str) -> None:
    assert telling_words(text) == words


def test_every_text_has_its_share_of_the_words() -> None:
    tokenizer: Any = Letters()
    assert bytes(word_ids(tokenizer, ["a cup", "the dog"]).tolist()) == b"cupdog"
    ids = word_ids(tokenizer, ["x" * 300, "y" * 300, "z"])
    share = MOST_WORDS // 3
    assert bytes(ids.tolist()) == b"x" * share + b"y" * share + b"z"
    assert len(word_ids(tokenizer, ["ab"] * 400)) == MOST_WORDS
    assert word_ids(tokenizer, []).shape == (0,)
