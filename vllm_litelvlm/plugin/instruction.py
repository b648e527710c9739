"""The user's own words, taken out of a prompt that arrives rendered.

A chat template has been applied to it. The template's own words ("USER:", a default system
prompt, ...) must not guide the pruning. They are not listed anywhere: a conversation of marker
words is rendered through the template, and what stands between the markers is what the template
says.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from vllm_litelvlm.plugin.turns import (
    Characters,
    Turn,
    decode,
    without_space,
    without_special_tokens,
    written_tokens,
)

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
        if parts is None or not any(parts):
            return None
        with_system = _between(tokenizer, template, [("system", _SYSTEM), *turns])
        system = (with_system[0], with_system[1]) if with_system and with_system[1] else None
        opening, to_answer, to_user, ending = parts
        return cls(opening, to_answer, to_user, ending, system)

    def user_turns(self, text: str) -> list[slice] | None:
        """The user's turns in a collapsed text, or None where it does not follow the template.

        Where the template does not label every change of speaker, what stands between its labels.
        """
        if not text.endswith(self.ending):
            return None
        start = self._start(text)
        end = len(text) - len(self.ending)
        if start is None or start > end:
            return None
        if not (self.to_answer and self.to_user):
            return _parted(text, self.to_answer or self.to_user, start, end)
        turns = []
        while True:
            answer = text.find(self.to_answer, start, end)
            question = text.find(self.to_user, answer + len(self.to_answer), end)
            if answer < 0 or question < 0:
                turns.append(slice(start, end))
                return turns
            turns.append(slice(start, answer))
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

    A prompt that follows none of the templates is one turn: its whole text.

    Args:
        tokenizer: the language model's, in transformers' interface.
        image_token_id: the placeholder that stands for an image.
        templates: of which prompts are read by the first that fits.
    """

    def __init__(self, tokenizer: Any, image_token_id: int, templates: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._image_token_id = image_token_id
        learned = [TemplateReader.learn(tokenizer, template) for template in templates]
        self._readers = [reader for reader in learned if reader is not None]

    def texts(self, prompt: Sequence[int]) -> list[str]:
        """What the user said, turn by turn, but for those without words."""
        text, turns = self._read(prompt)
        return list(filter(None, (self._words(text[turn]) for turn in turns)))

    def turns(self, prompt: Sequence[int]) -> list[Turn]:
        """The turns that have words or images, with their places in the prompt.

        An image outside of all user's turns is a turn without words.
        """
        text, turns = self._read(prompt)
        characters = Characters(self._tokenizer, prompt, self._image_token_id)
        images = [
            (characters.before(place), place + 1)
            for place, token in enumerate(prompt)
            if token == self._image_token_id
        ]
        found, done, written = [], 0, 0
        for turn in turns:
            start = written + len(without_space(text[done : turn.start]))
            written = start + len(without_space(text[turn]))
            done = turn.stop
            while images and images[0][0] < start:
                found.append(Turn("", images.pop(0)[1]))
            words, place = self._words(text[turn]), None
            while images and images[0][0] <= written:
                place = images.pop(0)[1]
            if place is not None or words:
                found.append(Turn(words, characters.token_at(start) if place is None else place))
        return [*found, *(Turn("", place) for _, place in images)]

    def _read(self, prompt: Sequence[int]) -> tuple[str, list[slice]]:
        """The prompt's text, collapsed, and where in it the user's turns are."""
        places = written_tokens(self._tokenizer, prompt, self._image_token_id)
        text = _collapsed(decode(self._tokenizer, [prompt[place] for place in places]))
        for reader in self._readers:
            turns = reader.user_turns(text)
            if turns is not None:
                return text, turns
        return text, [slice(0, len(text))]

    def _words(self, text: str) -> str:
        return without_special_tokens(text, self._tokenizer.all_special_tokens)


def _parted(text: str, label: str, start: int, end: int) -> list[slice]:
    """The parts of ``text[start:end]`` that a label leaves; one, where it is empty."""
    parts = []
    while label and (found := text.find(label, start, end)) >= 0:
        parts.append(slice(start, found))
        start = found + len(label)
    return [*parts, slice(start, end)]


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
        text = decode(tokenizer, ids[int(ids[:1] == [tokenizer.bos_token_id]) :])
        if any_marker.findall(text) == markers:
            return tuple(map(_collapsed, any_marker.split(text)))
    return None


def _collapsed(text: str) -> str:
    return " ".join(text.split())
