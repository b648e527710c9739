"""Keep-all, and a plugin that nobody asked for, are stock vLLM bit for bit."""

from collections.abc import Callable, Sequence
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


@pytest.fixture(scope="module")
def stock(
    without_plugin: Callable[[dict[str, str]], Any], photographs: Sequence[Image.Image]
) -> list[Answer]:
    """Answers of vLLM that loads no plugin at all."""
    with without_plugin({"VLLM_PLUGINS": ""}) as running:
        return answers(running.url, photographs)


def test_keep_all_is_bit_identical_to_stock(
    server: Any, photographs: Sequence[Image.Image], stock: list[Answer]
) -> None:
    assert answers(server.url, photographs, {"budget": 576}) == stock
    server.forget()
    assert answers(server.url, photographs, {"method": "keep-all", "budget": 64}) == stock


def test_pruning_is_not_stock(
    server: Any, photographs: Sequence[Image.Image], stock: list[Answer]
) -> None:
    pruned = answers(server.url, photographs, {"budget": 64})
    assert all(ours.logprobs != theirs.logprobs for ours, theirs in zip(pruned, stock, strict=True))


def test_installed_but_not_named_is_bit_identical_to_stock(
    without_plugin: Callable[[dict[str, str]], Any],
    photographs: Sequence[Image.Image],
    stock: list[Answer],
) -> None:
    with without_plugin({}) as running:
        assert answers(running.url, photographs) == stock


def test_named_but_switched_off_is_bit_identical_to_stock(
    without_plugin: Callable[[dict[str, str]], Any],
    photographs: Sequence[Image.Image],
    stock: list[Answer],
) -> None:
    with without_plugin({"VLLM_PLUGINS": "litelvlm", "VLLM_LITELVLM": "0"}) as running:
        assert answers(running.url, photographs) == stock
