"""Registration: what happens in every vLLM process once the plugin was asked for."""

import logging
import sys
from types import TracebackType

from vllm_litelvlm.activation import is_vllm_command
from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.plugin import (
    compat,
    default_runner,
    encoded,
    endpoints,
    metrics,
    pointing,
    requests,
    sent,
    variants,
)
from vllm_litelvlm.plugin.served import MODELS


def install() -> None:
    """Register models, configuration hook, wrappers and metrics. Idempotent.

    Raises CompatibilityError on a vLLM that is not supported.
    """
    compat.install()
    default_runner.install()
    requests.install()
    variants.install()
    sent.install()
    encoded.install()
    endpoints.install()
    pointing.install()
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vllm_litelvlm.plugin.config import LiteLVLMConfigHook

    for architecture, target in MODELS.items():
        ModelRegistry.register_model(architecture, target)
        stock = MODELS_CONFIG_MAP.get(architecture)
        MODELS_CONFIG_MAP[architecture] = LiteLVLMConfigHook.behind(stock)
    metrics.install()
    _log_like_vllm()
    if is_vllm_command(sys.argv):
        sys.excepthook = _end_in_a_sentence


def _log_like_vllm() -> None:
    """Send the package's log through vLLM's handlers, at vLLM's level."""
    ours, theirs = logging.getLogger("vllm_litelvlm"), logging.getLogger("vllm")
    ours.handlers = list(theirs.handlers)
    ours.setLevel(theirs.level)
    ours.propagate = theirs.propagate


def _end_in_a_sentence(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What is wrong with an operator's command needs no traceback."""
    if isinstance(error, LiteLVLMError):
        print(f"vllm: error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
