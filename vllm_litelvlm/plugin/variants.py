"""Named sets of options, each served as a model of its own: ``MODEL:NAME``.

Clients choose a model wherever they can choose nothing else, so this reaches every endpoint of
vLLM's front end. All of them ask ``_check_model`` first: there the name is taken apart, and what
follows in the same asyncio task reads the variant from a context variable.
"""

import functools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.plugin.wrap import wrap

#: Where the processor finds a request's variant among its arguments.
VARIANT_KEY = "litelvlm_variant"
_SEPARATOR = ":"


class Variant(str):
    """The name of a request's variant where our own code has put it; no client can make one."""


_asked: ContextVar[str | None] = ContextVar("litelvlm_variant", default=None)


def asked_variant() -> str | None:
    """The variant that the request of this asyncio task names."""
    return _asked.get()


def install() -> None:
    """Wrap vLLM's list of models, and where it looks a request's up. Idempotent."""
    models = "vllm.entrypoints.openai.models.serving"
    wrap(models, "OpenAIModelRegistry.__init__", _add_to_base_models)
    wrap(models, "OpenAIServingModels.show_available_models", _show_adapters)
    wrap(models, "OpenAIServingModels.model_name", _name_variant)
    wrap("vllm.entrypoints.serve.engine.serving", "BaseServing._check_model", _take_apart)
    pooling = "vllm.entrypoints.pooling.base.serving"
    wrap(pooling, "PoolingBaseServing._check_model", _take_apart_and_carry)


def _add_to_base_models(stock: Callable[..., None]) -> Callable[..., None]:
    """List every variant behind the names of the model, in vLLM's own list of those."""

    @functools.wraps(stock)
    def init(registry: Any, model_config: Any, base_model_paths: list[Any]) -> None:
        names = [one.name for one in base_model_paths]
        registry.litelvlm_names = {}  # of a variant: the model's name, and its own
        for one in list(base_model_paths):
            for variant in _variants(model_config):
                name = f"{one.name}{_SEPARATOR}{variant}"
                if name in names:
                    raise CompatibilityError(
                        f"--served-model-name {name!r} is also the litelvlm variant {variant!r} of "
                        f"{one.name!r}; rename one of them."
                    )
                registry.litelvlm_names[name] = (one.name, variant)
                base_model_paths.append(type(one)(name=name, model_path=one.model_path))
        stock(registry, model_config, base_model_paths)

    return init


def _show_adapters(stock: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """List every variant of the LoRA adapters."""

    @functools.wraps(stock)
    async def show_available_models(models: Any) -> Any:
        shown = await stock(models)
        adapters = [card for card in shown.data if card.id in models.lora_requests]
        for card in adapters:
            for variant in _variants(models.model_config):
                name = f"{card.id}{_SEPARATOR}{variant}"
                shown.data.append(card.model_copy(update={"id": name}))
        return shown

    return show_available_models


def _take_apart(stock: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Leave the request the model's own name, and this task the variant's."""

    @functools.wraps(stock)
    async def _check_model(serving: Any, request: Any) -> Any:
        model, variant = _parts(serving.models, request.model or "")
        if variant is not None:
            request.model = model
        _asked.set(variant)
        return await stock(serving, request)

    return _check_model


def _take_apart_and_carry(stock: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same where a request is rendered in a thread, which no context variable reaches."""
    taken_apart = _take_apart(stock)

    @functools.wraps(stock)
    async def _check_model(serving: Any, request: Any) -> Any:
        answer = await taken_apart(serving, request)
        if (variant := asked_variant()) is not None and hasattr(request, "mm_processor_kwargs"):
            given = request.mm_processor_kwargs or {}
            request.mm_processor_kwargs = {**given, VARIANT_KEY: Variant(variant)}
        return answer

    return _check_model


def _parts(models: Any, name: str) -> tuple[str, str | None]:
    """The model or adapter that a name begins with, and the variant that it ends with, if any."""
    known: dict[str, tuple[str, str]] = getattr(models, "registry", models).litelvlm_names
    if name in known:
        return known[name]
    # Adapters come and go, and they and the model itself may have any name.
    model, _, variant = name.rpartition(_SEPARATOR)
    is_whole = models.is_base_model(name) or name in models.lora_requests
    if is_whole or not model or model in known:
        return name, None
    return (model, variant) if variant in _variants(models.model_config) else (name, None)


def _name_variant(stock: Callable[..., str]) -> Callable[..., str]:
    """Answer under the name that was asked for, as vLLM does for an adapter."""

    @functools.wraps(stock)
    def model_name(models: Any, lora_request: Any = None) -> str:
        variant = asked_variant()
        name = stock(models, lora_request)
        return name if variant is None else f"{name}{_SEPARATOR}{variant}"

    return model_name


def _variants(model_config: Any) -> tuple[str, ...]:
    from vllm_litelvlm.plugin.config import served_variants

    return served_variants(model_config)
