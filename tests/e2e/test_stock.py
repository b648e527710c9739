"""Keep-all, and a plugin that nobody asked for, are stock vLLM bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from tests.e2e.client import Answer, ask, user_turn

QUESTIONS = ["What is on the left?", "Where is the red cup?"]


def answers(url: str, photographs: Sequence[Image.Image], options: object = None) -> list[Answer]:
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


@pytest.fixture(scope="module")
def stock(
    without_plugin: Callable[[dict[str, str]], Any], photographs: Sequence[Image.Image]
) -> Stock:
    return Stock(without_plugin, photographs)


def test_keep_all_is_bit_identical_to_stock(
    server: Any, photographs: Sequence[Image.Image], stock: Stock
) -> None:
    assert stock.gives(answers(server.url, photographs, {"budget": 576}))
    server.forget()
    assert stock.gives(answers(server.url, photographs, {"method": "keep-all", "budget": 64}))


def test_pruning_is_not_keep_all(server: Any, photographs: Sequence[Image.Image]) -> None:
    whole = answers(server.url, photographs, {"budget": 576})
    pruned = answers(server.url, photographs, {"budget": 64})
    assert all(ours.logprobs != theirs.logprobs for ours, theirs in zip(pruned, whole, strict=True))


def test_installed_but_not_named_is_bit_identical_to_stock(
    without_plugin: Callable[[dict[str, str]], Any],
    photographs: Sequence[Image.Image],
    stock: Stock,
) -> None:
    with without_plugin({}) as running:
        assert stock.gives(answers(running.url, photographs))


def test_named_but_switched_off_is_bit_identical_to_stock(
    without_plugin: Callable[[dict[str, str]], Any],
    photographs: Sequence[Image.Image],
    stock: Stock,
) -> None:
    with without_plugin({"VLLM_PLUGINS": "litelvlm", "VLLM_LITELVLM": "0"}) as running:
        assert stock.gives(answers(running.url, photographs))
