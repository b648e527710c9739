"""Which runner a model of ours has where ``--runner`` says nothing."""

import functools
from collections.abc import Callable
from typing import Any

from vllm_litelvlm.grounding.layout import ARCHITECTURE
from vllm_litelvlm.plugin.wrap import wrap


def install() -> None:
    """Let a model that can pool generate all the same: that serves words and masks. Idempotent."""
    wrap("vllm.config.model", "ModelConfig._get_default_runner_type", _generate)


def _generate(stock: Callable[..., str]) -> Callable[..., str]:
    """vLLM would take pooling, for which the class is there too."""

    @functools.wraps(stock)
    def _get_default_runner_type(config: Any, architectures: list[str]) -> str:
        return "generate" if ARCHITECTURE in architectures else stock(config, architectures)

    return _get_default_runner_type
