"""What guides a request whose messages vLLM still has: the user's own words in them.

Nothing has to be taken out of a rendered prompt here. It is read only for where the turns stand,
and only when something is to stand there.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from vllm_litelvlm.plugin.layers import Guide, guiding_texts
from vllm_litelvlm.plugin.turns import Characters, Turn, without_space, without_special_tokens

#: Under it a prompt carries its conversation, and then the arguments of its multimodal processor.
CONVERSATION_KEY = "litelvlm_conversation"

Message = Mapping[str, Any]


class Conversation:
    """A request's messages, as vLLM hands them to the chat template.

    Args:
        messages: with contents that are text, or parts.
        image_token: what stands for an image in text.
        special_tokens: the tokenizer's; they are no words.
        render: applies the chat template with a tokenizer, by the request's settings for it.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        image_token: str,
        special_tokens: Sequence[str],
        render: Callable[[Any, list[Message]], str],
    ) -> None:
        self._messages = messages
        self._image_token = image_token
        self._special_tokens = [image_token, *special_tokens]
        self._render = render

    def texts(self) -> list[str]:
        """What the user said, message by message, but for those without words."""
        return list(filter(None, map(self._text, self._messages)))

    def guiding(self, guide: Guide, most: int) -> tuple[str, ...]:
        """The texts that guide, ``most`` at the most, where a request names none."""
        return guiding_texts(self.texts(), guide, most)

    def about(self, expressions: Sequence[str]) -> "Conversation":
        """The same, whose words are ours but for some expressions, which guide."""
        return _Referring(self, expressions)

    def turns(
        self, prompt: Sequence[int], tokenizer: Any, image_token_id: int
    ) -> list[Turn] | None:
        """The turns, with their places in the prompt, in whose order they are.

        None where the prompt does not show them: it has another number of images, or what it says
        depends on more than the words in the conversation.
        """
        texts = [self._text(message) for message in self._messages]
        images = [self._count_images(message) for message in self._messages]
        places = [place for place, token in enumerate(prompt) if token == image_token_id]
        if sum(images) != len(places):
            return None
        behind = [places[count - 1] + 1 if count else 0 for count in accumulate(images)]
        silent = [bool(text) and not count for text, count in zip(texts, images, strict=True)]
        if any(silent):
            starts = self._word_places(silent, prompt, tokenizer, image_token_id)
            if starts is None:
                return None
            behind = [
                next(starts) if is_silent else place
                for place, is_silent in zip(behind, silent, strict=True)
            ]
        turns = [
            Turn(text, place)
            for text, count, place in zip(texts, images, behind, strict=True)
            if text or count
        ]
        in_order = all(one.place <= other.place for one, other in pairwise(turns))
        return turns if in_order else None

    def _word_places(
        self, wanted: Sequence[bool], prompt: Sequence[int], tokenizer: Any, image_token_id: int
    ) -> Iterator[int] | None:
        """Where the words of the wanted messages begin.

        The messages are rendered once more with a mark in front of those words.
        """
        mark = f"qz{secrets.token_hex(8)}"
        marked = [
            _marked(message, mark) if is_wanted else message
            for message, is_wanted in zip(self._messages, wanted, strict=True)
        ]
        rendered = self._render(tokenizer, marked).removeprefix(tokenizer.bos_token or "")
        *before, last = without_space(rendered.replace(self._image_token, "")).split(mark)
        characters = Characters(tokenizer, prompt, image_token_id)
        if len(before) != sum(wanted) or "".join([*before, last]) != characters.text:
            return None
        return map(characters.token_at, accumulate(map(len, before)))

    def _text(self, message: Message) -> str:
        """The user's words in a message, stripped; "" in a message by another."""
        if message["role"] != "user":
            return ""
        return without_special_tokens("\n".join(_texts(message)), self._special_tokens)

    def _count_images(self, message: Message) -> int:
        """How many image tokens a message brings to its prompt."""
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        written = sum(text.count(self._image_token) for text in _texts(message))
        return written + [part["type"] for part in parts].count("image")


def _texts(message: Message) -> list[str]:
    content = message.get("content") or ""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _marked(message: Message, mark: str) -> Message:
    """The message with a mark in front of its words."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": mark + content}
    parts = [dict(part) for part in content]
    first = next(part for part in parts if part["type"] == "text" and part["text"].strip())
    first["text"] = mark + first["text"]
    return {**message, "content": parts}


class _Referring(Conversation):
    """A conversation that was made around expressions."""

    def __init__(self, made: Conversation, expressions: Sequence[str]) -> None:
        vars(self).update(vars(made))
        self._expressions = expressions

    def guiding(self, guide: Guide, most: int) -> tuple[str, ...]:
        """All of them, whichever message they stand in."""
        return tuple(self._expressions[-most:])
