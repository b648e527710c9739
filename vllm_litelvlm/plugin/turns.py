"""What guides a request: the turns of its conversation, and where in its prompt they stand."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_BLOCK = 32
_LONGEST_CHARACTER = 4  # bytes, and so tokens
_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Turn:
    """A user's message with words in it, or anybody's message with images.

    ``text`` holds the user's words, stripped; "" where there are none. What is chosen for the turn
    stands in front of the prompt's token number ``place``: behind the message's last image, or
    where its words begin.
    """

    text: str
    place: int


class Characters:
    """The characters that a prompt's tokens write, and which token writes which.

    White space is not among them, nor is a begin-of-sequence token that leads, nor an image. The
    prompt is decoded in blocks, and read closely in those alone that are asked for. What is said
    of a token depends on nothing behind it.

    Args:
        tokenizer: the language model's, in transformers' interface.
        prompt: token ids.
        image_token_id: the placeholder that stands for an image.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], image_token_id: int) -> None:
        self._tokenizer = tokenizer
        self._places = written_tokens(tokenizer, prompt, image_token_id)
        self._ids = [prompt[place] for place in self._places]
        self._places.append(len(prompt))
        self._starts, self._counts = [0], [0]  # tokens and characters in front of each block
        texts = []
        while (start := self._starts[-1]) < len(self._ids):
            # A block ends with a whole character.
            for end in range(start + _BLOCK, start + _BLOCK + _LONGEST_CHARACTER):
                text = self._text(start, end)
                if not text.endswith(_UNFINISHED):
                    break
            texts.append(text)
            self._starts.append(min(end, len(self._ids)))
            self._counts.append(self._counts[-1] + len(text))
        self.text = "".join(texts)

    def token_at(self, characters: int) -> int:
        """The first token that so many characters precede, or that holds the next beside others."""
        block = bisect_left(self._counts, characters) - 1
        if block < 0:
            return self._places[0]
        start, end = self._starts[block : block + 2]
        found = bisect_left(range(end), characters, lo=start, key=self._before)
        return self._places[found - (self._before(found) > characters)]

    def before(self, place: int) -> int:
        """How many characters precede the prompt's token number ``place``."""
        return self._before(bisect_left(self._places, place))

    def _before(self, token: int) -> int:
        block = bisect_left(self._starts, token, lo=1) - 1
        start, written = self._starts[block], ""
        # A character of several tokens counts behind its last.
        for end in range(token, max(start - 1, token - _LONGEST_CHARACTER), -1):
            written = self._text(start, end)
            if not written.endswith(_UNFINISHED):
                break
        return self._counts[block] + len(written)

    def _text(self, start: int, end: int) -> str:
        return without_space(decode(self._tokenizer, self._ids[start:end]))


def written_tokens(tokenizer: Any, prompt: Sequence[int], image_token_id: int) -> list[int]:
    """The places of a prompt's tokens that write something: no image, and no leading BOS."""
    start = 0
    while start < len(prompt) and prompt[start] == tokenizer.bos_token_id:
        start += 1
    return [place for place in range(start, len(prompt)) if prompt[place] != image_token_id]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as text, special tokens included."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def without_space(text: str) -> str:
    """A text as one word."""
    return "".join(text.split())


def without_special_tokens(text: str, special_tokens: Iterable[str]) -> str:
    """A user's text, stripped, as what is special about it is no word of his."""
    for token in special_tokens:
        text = text.replace(token, "")
    return text.strip()
