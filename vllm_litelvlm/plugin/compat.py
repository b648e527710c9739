"""The places in vLLM's front end that offer no hook and are wrapped instead.

Every wrapper is installed by :func:`install` and keeps the stock function's behaviour for
everything that is not ours.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

from vllm_litelvlm.activation import SWITCH
from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.options import OPTIONS_KEY
from vllm_litelvlm.plugin.asked import VARIANT_KEY, Variant, noted
from vllm_litelvlm.plugin.conversation import CONVERSATION_KEY, Conversation
from vllm_litelvlm.plugin.refusal import FIELD, refusal, refusals, refuse_bare
from vllm_litelvlm.plugin.served import MODELS, family_of, is_ours
from vllm_litelvlm.plugin.trace import TRACE
from vllm_litelvlm.plugin.wrap import check_version, wrap


def install() -> None:
    """Check vLLM's version and wrap its functions. Idempotent.

    Raises CompatibilityError naming the supported versions.
    """
    check_version()
    _name_our_variables()
    wrap("vllm.config.vllm", "VllmConfig.try_verify_and_update_config", _check_served_class)
    wrap("vllm.renderers.base", "BaseRenderer.warmup", _tell_chat_template)
    wrap("vllm.renderers.base", "BaseRenderer.clear_mm_cache", _clear_pixels)
    wrap("vllm.renderers.hf", "HfRenderer.render_messages", _keep_conversation)
    wrap("vllm.renderers.hf", "HfRenderer.render_messages_async", _keep_conversation_async)
    wrap("vllm.renderers.base", "BaseRenderer._apply_prompt_extras", _check_and_pass_on)


def _name_our_variables() -> None:
    """Spare users vLLM's warning about ``VLLM_`` variables that it does not know."""
    from vllm import envs

    for name in (SWITCH, TRACE):
        envs.environment_variables.setdefault(name, functools.partial(os.environ.get, name))


def _check_served_class(stock: Callable[..., None]) -> Callable[..., None]:
    """Refuse to start where another class than ours would serve a model of ours, unpruned."""

    @functools.wraps(stock)
    def try_verify_and_update_config(config: Any) -> None:
        stock(config)
        if config.model_config is not None and is_ours(config):
            _refuse_another_class(config.model_config)

    return try_verify_and_update_config


def _refuse_another_class(model_config: Any) -> None:
    from vllm import ModelRegistry

    architecture = model_config.architecture
    registered = ModelRegistry.models.get(architecture)
    module, name = (getattr(registered, part, None) for part in ("module_name", "class_name"))
    if MODELS.get(architecture) != f"{module}:{name}":
        raise CompatibilityError(
            f"litelvlm was asked for, but this model would be served by another class "
            f"({name or architecture}; --model-impl is {model_config.model_impl!r}), which prunes "
            "nothing. Leave --model-impl and other plugins for this architecture out, or serve "
            "without --plugin litelvlm."
        )


def _tell_chat_template(stock: Callable[..., None]) -> Callable[..., None]:
    """Tell the processor of ``--chat-template``, which vLLM has here before the first request."""

    @functools.wraps(stock)
    def warmup(renderer: Any, chat_params: Any) -> None:
        if is_ours(renderer) and renderer.mm_processor is not None:
            renderer.mm_processor.chat_template = chat_params.chat_template
        stock(renderer, chat_params)

    return warmup


def _clear_pixels(stock: Callable[..., None]) -> Callable[..., None]:
    """Empty the processor's cache with vLLM's own."""

    @functools.wraps(stock)
    def clear_mm_cache(renderer: Any) -> None:
        stock(renderer)
        if is_ours(renderer) and renderer.mm_processor is not None:
            renderer.mm_processor.clear_pixels()

    return clear_mm_cache


def _keep_conversation(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Leave the messages in the prompt that they were rendered to."""

    @functools.wraps(stock)
    def render_messages(renderer: Any, messages: Any, params: Any) -> Any:
        conversation, prompt = stock(renderer, messages, params)
        return conversation, _with_conversation(renderer, conversation, params, prompt)

    return render_messages


def _keep_conversation_async(stock: Callable[..., Any]) -> Callable[..., Any]:
    """The same for ``vllm serve``."""

    @functools.wraps(stock)
    async def render_messages_async(renderer: Any, messages: Any, params: Any) -> Any:
        conversation, prompt = await stock(renderer, messages, params)
        return conversation, _with_conversation(renderer, conversation, params, prompt)

    return render_messages_async


def _with_conversation(renderer: Any, conversation: Any, params: Any, prompt: Any) -> Any:
    from vllm.renderers.hf import safe_apply_chat_template

    if not (is_ours(renderer) and "multi_modal_data" in prompt):
        return prompt
    config, tokenizer = renderer.model_config, renderer.get_tokenizer()
    image_token = family_of(config).image_token(config.hf_config)
    settings = {**params.get_apply_chat_template_kwargs(), "tokenize": False}
    kept = Conversation(
        conversation,
        image_token=tokenizer.convert_ids_to_tokens(image_token),
        special_tokens=tokenizer.all_special_tokens,
        render=functools.partial(safe_apply_chat_template, config, **settings),
    )
    return {**prompt, CONVERSATION_KEY: kept}


def _check_and_pass_on(stock: Callable[..., None]) -> Callable[..., None]:
    """Hand on what is known of a request, and check options that have no image to prune.

    Every prompt comes by here once it is tokenized. The arguments of its multimodal processor,
    which a request sends, are what reaches ours.
    """
    from vllm.renderers.inputs.preprocess import extract_target_prompt

    @functools.wraps(stock)
    def apply_prompt_extras(renderer: Any, prompts: Any, prompt_extras: Any) -> None:
        stock(renderer, prompts, prompt_extras)
        for prompt in prompts:
            target = extract_target_prompt(renderer.model_config, prompt)
            if is_ours(renderer):
                _pass_on(renderer.model_config, target)
            elif OPTIONS_KEY in (target.get(FIELD) or {}):
                _refuse_other_model(renderer.model_config.architectures)

    return apply_prompt_extras


def _refuse_other_model(architectures: list[str]) -> None:
    raise refusal(
        f"litelvlm options were sent, but litelvlm does not support this model "
        f"({', '.join(architectures)}); it supports {', '.join(MODELS)}. Leave the options out."
    )


def _pass_on(model_config: Any, prompt: Any) -> None:
    """Give the processor what this front end knows of the request; no client can say these."""
    given = dict(prompt.get(FIELD) or {})
    refuse_bare(given)
    carried, asked = given.pop(VARIANT_KEY, None), noted()
    variant = carried if isinstance(carried, Variant) else asked.variant
    conversation = prompt.pop(CONVERSATION_KEY, None)
    given.pop(CONVERSATION_KEY, None)
    if asked.options is not None:
        given.setdefault(OPTIONS_KEY, asked.options)
    if not prompt.get("multi_modal_data"):
        check_unused(model_config, given.pop(OPTIONS_KEY, None), variant)
    else:
        known = {CONVERSATION_KEY: conversation, VARIANT_KEY: variant}
        given |= {key: value for key, value in known.items() if value is not None}
    if given or FIELD in prompt:
        prompt[FIELD] = given


def check_unused(model_config: Any, options: object, variant: str | None) -> None:
    """Refuse options that are wrong, of a request that has no image: right ones have no effect.

    Clients send what is fixed in them with every request. Raises VLLMValidationError.
    """
    if options is None:
        return
    from vllm_litelvlm.plugin.config import guidance_config, settle_options

    config = model_config.hf_config
    with refusals():
        server = guidance_config(config).server.of(variant)
        settle_options(options, server, family_of(model_config).traits(config))
