"""What vLLM's model runners do not do by themselves; asked for by a model that they hold."""

import functools
from collections.abc import Callable
from typing import Any

from vllm_litelvlm.plugin.wrap import wrap


def mend_cpu_runner() -> None:
    """Let vLLM's runner on a CPU know that its model prunes, as its other runners do. Idempotent.

    The attribute is set by ``load_model``, which this one runner overrides and leaves that out of.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    name = "is_multimodal_pruning_enabled"

    def get(runner: Any) -> bool:
        config = runner.model_config.multimodal_config
        return config is not None and config.is_multimodal_pruning_enabled()

    def ignore(runner: Any, value: bool) -> None:
        """``__init__`` sets it before there is a model."""

    setattr(CPUModelRunner, name, property(get, ignore))


def follow_resets(v2: bool) -> None:
    """Let a model of ours forget what vLLM forgets by ``reset_encoder_cache``. Idempotent.

    Args:
        v2: which of the two runners this process has.
    """
    module = "vllm.v1.worker.gpu.model_runner" if v2 else "vllm.v1.worker.gpu_model_runner"
    wrap(module, "GPUModelRunner.reset_encoder_cache", _forget_too)


def _forget_too(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def reset_encoder_cache(runner: Any) -> None:
        stock(runner)
        if getattr(runner, "model", None) is not None:
            forget = getattr(runner.get_model(), "litelvlm_forget", None)
            if forget is not None:
                forget()

    return reset_encoder_cache
