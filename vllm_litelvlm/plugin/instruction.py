"""The user's own words, taken out of a rendered prompt.

By the time a prompt reaches the multimodal processor, the chat template has been applied. The
template's own words ("USER:", a default system prompt, ...) must not guide the pruning. They are
not listed anywhere: a conversation of marker words is rendered through the template, and what
stands between the markers is what the template says.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

_SYSTEM, _FIRST, _ANSWER, _SECOND = "qzsystem", "qzfirst", "qzanswer", "qzsecond"


@dataclass(frozen=True)
class TemplateReader:
    """Recognises one chat template in decoded prompts.

    White space is collapsed on both sides (CLIP's tokenizer does the same), and everything is
    found with plain string searches, so that no prompt can make reading it slow.
    """

    opening: str
    to_answer: str
    to_user: str
    ending: str
    system: tuple[str, str] | None

    @classmethod
    def learn(cls, tokenizer: Any, template: str) -> "TemplateReader | None":
        """Learn a Jinja template, or None where it does not show its parts clearly."""
        turns = [("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)]
        parts = _between(tokenizer, template, turns)
        if parts is None or not (parts[1] and parts[2]):
            return None
        with_system = _between(tokenizer, template, [("system", _SYSTEM), *turns])
        system = (with_system[0], with_system[1]) if with_system and with_system[1] else None
        opening, to_answer, to_user, ending = parts
        return cls(opening, to_answer, to_user, ending, system)

    def user_turns(self, text: str) -> list[str] | None:
        """The user's turns in order, or None where the text does not follow the template."""
        text = _collapsed(text)
        if not text.endswith(self.ending):
            return None
        start = self._start(text)
        end = len(text) - len(self.ending)
        if start is None or start > end:
            return None
        turns = []
        while True:
            answer = text.find(self.to_answer, start, end)
            question = text.find(self.to_user, answer + len(self.to_answer), end)
            if answer < 0 or question < 0:
                turns.append(text[start:end].strip())
                return turns
            turns.append(text[start:answer].strip())
            start = question + len(self.to_user)

    def _start(self, text: str) -> int | None:
        """Where the first user turn begins, past the template's opening or a system message."""
        if text.startswith(self.opening):
            return len(self.opening)
        if self.system is not None and text.startswith(self.system[0]):
            found = text.find(self.system[1], len(self.system[0]))
            return None if found < 0 else found + len(self.system[1])
        return None


class InstructionReader:
    """Reads the user's turns out of prompts, given as token ids.

    Args:
        tokenizer: the language model's, in transformers' interface.
        image_token_id: the placeholder that stands for an image.
    """

    def __init__(self, tokenizer: Any, image_token_id: int) -> None:
        self._tokenizer = tokenizer
        self._image_token_id = image_token_id
        self._readers: dict[str, TemplateReader | None] = {}

    def user_turns(self, prompt: Sequence[int], templates: Sequence[str]) -> list[str]:
        """The user's turns by the first template that fits.

        A prompt that follows none of the templates gives one turn: its whole text, without
        special tokens.
        """
        ids = [token for token in prompt if token != self._image_token_id]
        text = decode_prompt(self._tokenizer, ids)
        for template in templates:
            if template not in self._readers:
                self._readers[template] = TemplateReader.learn(self._tokenizer, template)
            reader = self._readers[template]
            turns = reader.user_turns(text) if reader else None
            if turns is not None:
                return [self._without_special_tokens(turn) for turn in turns]
        return [self._tokenizer.decode(ids, skip_special_tokens=True).strip()]

    def _without_special_tokens(self, text: str) -> str:
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return text.strip()


def _between(
    tokenizer: Any, template: str, turns: Sequence[tuple[str, str]]
) -> tuple[str, ...] | None:
    """What the template writes before, between and after the turns' markers, collapsed."""
    markers = [marker for _, marker in turns]
    any_marker = re.compile("|".join(markers))
    for as_parts in (False, True):
        conversation = [
            {"role": role, "content": [{"type": "text", "text": marker}] if as_parts else marker}
            for role, marker in turns
        ]
        try:
            rendered = tokenizer.apply_chat_template(
                conversation, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError):
            continue  # a template for the other form of content, or without such a role
        # Prompts arrive as token ids: what encoding and decoding does to them is done here too.
        ids = tokenizer.encode(rendered, add_special_tokens=False)
        text = decode_prompt(tokenizer, ids)
        if any_marker.findall(text) == markers:
            return tuple(map(_collapsed, any_marker.split(text)))
    return None


def decode_prompt(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as text with its special tokens, but for a leading begin-of-sequence token."""
    if ids and ids[0] == tokenizer.bos_token_id:
        ids = ids[1:]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def _collapsed(text: str) -> str:
    return " ".join(text.split())
