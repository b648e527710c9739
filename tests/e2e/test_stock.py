"""Keep-all, and a plugin that nobody asked for, are stock vLLM bit for bit."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from tests.e2e.runners import on_v1_alone
from tests.e2e.stock import Stock, answers


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


@on_v1_alone
def test_installed_but_not_named_is_bit_identical_to_stock(
    without_plugin: Callable[[dict[str, str]], Any],
    photographs: Sequence[Image.Image],
    stock: Stock,
) -> None:
    with without_plugin({}) as running:
        assert stock.gives(answers(running.url, photographs))


@on_v1_alone
def test_named_but_switched_off_is_bit_identical_to_stock(
    without_plugin: Callable[[dict[str, str]], Any],
    photographs: Sequence[Image.Image],
    stock: Stock,
) -> None:
    with without_plugin({"VLLM_PLUGINS": "litelvlm", "VLLM_LITELVLM": "0"}) as running:
        assert stock.gives(answers(running.url, photographs))
