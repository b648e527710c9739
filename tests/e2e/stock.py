"""Stock vLLM's answers, to be bit-identical to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tests.e2e.client import Answer, ask, user_turn

QUESTIONS = ["What is on the left?", "Where is the red cup?"]


def answers(url: str, photographs: Sequence[Image.Image], options: object = None) -> list[Answer]:
    """About one image and two, with log-probabilities."""
    single = [
        ask(url, user_turn(question, image), options, 12)
        for image in photographs
        for question in QUESTIONS
    ]
    return [*single, ask(url, user_turn(QUESTIONS[0], *photographs[:2]), options, 12)]


@dataclass
class Stock:
    """Answers of vLLM that loads no plugin at all.

    On some machines a start of vLLM differs from its next start in the last bits, whatever was
    asked. So an answer is stock's if one of a few starts gives it, every bit of it; the first
    start is all that is needed where starts agree.
    """

    start: Callable[[dict[str, str]], Any]
    photographs: Sequence[Image.Image]
    starts: list[list[Answer]] = field(default_factory=list)

    def gives(self, these: list[Answer]) -> bool:
        while these not in self.starts and len(self.starts) < 4:
            with self.start({"VLLM_PLUGINS": ""}) as running:
                self.starts.append(answers(running.url, self.photographs))
        return these in self.starts
