"""Which of a prompt's tokens writes which character."""

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.plugin.turns import Characters

TEXTS = {
    "short": "USER: <image>\nWhere is the red cup? ASSISTANT:",
    "long": "USER: <image>\nWhere is it? " + "Over the hills, and far away.\n\n" * 30,
    "many bytes": "USER: 赤い車 🚗 and سيارة 👩‍👩‍👧? e\u0301 é <image> " * 4,
    "nothing but bytes": "赤い車🚗" * 40,
    "images": "<image><image>",
    "special": "a </s> cup <s>? <unk> b",
    "one letter": "a",
    "nothing": "",
}


def written(tokenizer: Any, ids: Sequence[int]) -> str:
    """What token ids write, but for white space, images and a leading begin-of-sequence token."""
    if list(ids[:1]) == [tokenizer.bos_token_id]:
        ids = ids[1:]
    image = tokenizer.convert_tokens_to_ids("<image>")
    return "".join(tokenizer.decode([one for one in ids if one != image]).split())


def token_behind(tokenizer: Any, prompt: Sequence[int], text: str) -> int:
    """The first token behind a text, or that holds its end; by decoding everything before each."""
    wanted, whole = "".join(text.replace("<image>", "").split()), written(tokenizer, prompt)
    image, begin = tokenizer.convert_tokens_to_ids("<image>"), tokenizer.bos_token_id
    at = 0
    for place in range(len(prompt) + 1):
        if place < len(prompt) and prompt[place] in (image, begin)[: 2 if place == 0 else 1]:
            continue
        before = written(tokenizer, prompt[:place])
        if not whole.startswith(before):
            continue  # within a character of several tokens
        if len(before) == len(wanted):
            return place
        if len(before) > len(wanted):
            return at
        at = place
    raise AssertionError(text)


@pytest.fixture(scope="module", params=["fast", "slow"])
def tokenizer(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Any:
    fast = AutoTokenizer.from_pretrained(checkpoint.llava)
    return fast if request.param == "fast" else Slow(fast)


class Slow:
    """A tokenizer with the interface that slow ones have in common with fast ones."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_token_id

    def convert_tokens_to_ids(self, token: str) -> Any:
        return self._tokenizer.convert_tokens_to_ids(token)

    def encode(self, text: str, **options: bool) -> Any:
        return self._tokenizer.encode(text, **options)

    def decode(self, ids: Sequence[int], **options: bool) -> str:
        """By its parts, as SentencePiece's Python binding does it."""
        special = set(self._tokenizer.all_special_ids)
        pieces: list[list[int]] = [[]]
        for token in ids:
            pieces += [[token], []] if token in special else []
            if token not in special:
                pieces[-1].append(token)
        return " ".join(self._tokenizer.decode(piece, **options) for piece in pieces if piece)


def read(tokenizer: Any, prompt: Sequence[int]) -> Characters:
    return Characters(tokenizer, prompt, tokenizer.convert_tokens_to_ids("<image>"))


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_token_of_every_character_is_the_one_that_a_slow_search_finds(
    tokenizer: Any, text: str, begin: bool
) -> None:
    prompt = tokenizer.encode(text, add_special_tokens=begin)
    characters = read(tokenizer, prompt)
    assert characters.text == written(tokenizer, prompt)
    step = max(len(characters.text) // 25, 1)
    for count in range(0, len(characters.text), step):
        expected = token_behind(tokenizer, prompt, characters.text[:count])
        assert characters.token_at(count) == expected
        assert characters.before(expected) <= count


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_what_is_behind_a_character_does_not_matter(tokenizer: Any, text: str) -> None:
    prompt = tokenizer.encode(text, add_special_tokens=False)
    whole = read(tokenizer, prompt)
    for cut in range(0, len(prompt), max(len(prompt) // 15, 1)):
        part, known = read(tokenizer, prompt[:cut]), whole.before(cut)
        assert part.before(cut) == known
        counts = range(0, known, max(known // 10, 1))
        assert list(map(part.token_at, counts)) == list(map(whole.token_at, counts))


def test_images_precede_no_characters_of_their_own(tokenizer: Any) -> None:
    prompt = tokenizer.encode("USER: <image>\n<image>\nA cup?", add_special_tokens=True)
    image = tokenizer.convert_tokens_to_ids("<image>")
    characters = read(tokenizer, prompt)
    assert [characters.before(at) for at, one in enumerate(prompt) if one == image] == [5, 5]
    assert characters.text == "USER:Acup?"


@pytest.mark.parametrize("text", ["x \ufffd y", "\ufffd" * 100, "\ufffd a" * 60], ids=len)
def test_sign_for_an_unreadable_character_breaks_nothing(tokenizer: Any, text: str) -> None:
    prompt = tokenizer.encode(text, add_special_tokens=False)
    characters = read(tokenizer, prompt)
    places = [characters.token_at(count) for count in range(len(characters.text))]
    assert places == sorted(places)
    assert places[-1] < len(prompt)
