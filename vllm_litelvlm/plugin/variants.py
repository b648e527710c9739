"""Named sets of options, each served as a model of its own: ``MODEL:NAME``.

Clients choose a model wherever they can choose nothing else, so this reaches every endpoint of
vLLM's front end. A variant may have a whole name besides, for tools that read a colon otherwise.
"""

import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.plugin.asked import noted
from vllm_litelvlm.plugin.wrap import wrap

_SEPARATOR = ":"


def install() -> None:
    """Wrap vLLM's list of models, and where it looks a request's up. Idempotent."""
    models = "vllm.entrypoints.openai.models.serving"
    wrap(models, "OpenAIModelRegistry.__init__", _add_to_base_models)
    wrap(models, "OpenAIServingModels.show_available_models", _show_adapters)
    wrap(models, "OpenAIServingModels.model_name", _name_variant)


def _add_to_base_models(stock: Callable[..., None]) -> Callable[..., None]:
    """List every variant behind the names of the model, in vLLM's own list of those."""

    @functools.wraps(stock)
    def init(registry: Any, model_config: Any, base_model_paths: list[Any]) -> None:
        served = [one.name for one in base_model_paths]
        registry.litelvlm_names = {}  # of a variant: the model's name, and its own
        kind, path = type(base_model_paths[0]), base_model_paths[0].model_path
        for name, model, variant in _served_names(served, _variants(model_config)):
            if name in served or name in registry.litelvlm_names:
                raise CompatibilityError(
                    f"{name!r} would name two models: litelvlm variant {variant!r} of {model!r}, "
                    "and another variant or --served-model-name; rename one of them."
                )
            registry.litelvlm_names[name] = (model, variant)
            base_model_paths.append(kind(name=name, model_path=path))
        stock(registry, model_config, base_model_paths)

    return init


def _served_names(
    models: list[str], variants: Mapping[str, str | None]
) -> Iterator[tuple[str, str, str]]:
    """Every name of every variant, with the model's and the variant's own."""
    for model in models:
        for variant in variants:
            yield f"{model}{_SEPARATOR}{variant}", model, variant
    for variant, name in variants.items():
        if name is not None:
            yield name, models[0], variant


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


def take_apart(models: Any, name: str) -> tuple[str, str | None]:
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
        asked = noted()
        return stock(models, lora_request) if asked.variant is None else asked.model

    return model_name


def _variants(model_config: Any) -> Mapping[str, str | None]:
    from vllm_litelvlm.plugin.config import served_variants

    return served_variants(model_config)
