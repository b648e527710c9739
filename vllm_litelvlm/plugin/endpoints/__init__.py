"""HTTP endpoints beside vLLM's own."""

import functools
from collections.abc import Callable
from typing import Any

from vllm_litelvlm.plugin.wrap import wrap


def install() -> None:
    """Wrap where vLLM's API server, and nothing else, looks for its plugins. Idempotent."""
    wrap("vllm.plugins", "load_endpoint_plugins", _add_ours)


def _add_ours(stock: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """vLLM takes those that ``VLLM_PLUGINS`` names; who named us has asked for ours."""

    @functools.wraps(stock)
    def load_endpoint_plugins(*args: Any, **kwargs: Any) -> list[Any]:
        from vllm_litelvlm.plugin.endpoints.page.plugin import PagePlugin
        from vllm_litelvlm.plugin.endpoints.plugin import MasksPlugin

        return [*stock(*args, **kwargs), MasksPlugin(), PagePlugin()]

    return load_endpoint_plugins
