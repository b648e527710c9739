"""Requests as they enter vLLM's front end, whichever of its APIs they speak.

All of them ask ``_check_model`` first. There the model's name is taken apart, and options in a
wrong place are refused with the right spelling. Where an API knows no ``mm_processor_kwargs``, the
field is kept for what follows.
"""

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from vllm_litelvlm.options import OPTIONS_KEY, as_json
from vllm_litelvlm.plugin.asked import VARIANT_KEY, Asked, Variant, note, noted
from vllm_litelvlm.plugin.compat import check_unused
from vllm_litelvlm.plugin.refusal import FIELD, refusal, refuse_bare, spelled
from vllm_litelvlm.plugin.served import is_ours
from vllm_litelvlm.plugin.variants import take_apart
from vllm_litelvlm.plugin.wrap import find, wrap

_NESTED = "extra_body"
#: Marks a chat request that was given fields which its API does not know.
_KEPT = "litelvlm_kept"
_EXAMPLE = spelled({"budget": 64})


def install() -> None:
    """Wrap what every request goes through. Idempotent."""
    wrap("vllm.entrypoints.serve.engine.serving", "BaseServing._check_model", _read)
    pooling = "vllm.entrypoints.pooling.base.serving"
    wrap(pooling, "PoolingBaseServing._check_model", _read_and_carry)
    for module in ("vllm.renderers.online_renderer", pooling):
        wrap(module, "validate_request_mm_kwargs", _let_our_options_pass)
    handlers = "vllm.entrypoints.serve.exception_handling.register"
    wrap(handlers, "validation_exception_handler", _spell_field)
    scoring = "vllm.entrypoints.generate.generative_scoring.serving"
    wrap(scoring, "ServingGenerativeScoring._build_prompts", _check_options)
    for module, name in (
        ("anthropic", "AnthropicMessagesRequest"),
        ("anthropic", "AnthropicCountTokensRequest"),
        ("pooling.embed", "CohereEmbedRequest"),
        ("scale_out.token_in_token_out", "GenerateRequest"),
    ):
        _keep_fields(find(f"vllm.entrypoints.{module}.protocol", name)[0])
    messages = "vllm.entrypoints.anthropic.serving"
    wrap(messages, "AnthropicServingMessages._build_base_request", _hand_on)


def _read(stock: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Take the model's name apart and note what was asked for; refuse what is misplaced."""
    from vllm.exceptions import VLLMValidationError

    @functools.wraps(stock)
    async def _check_model(serving: Any, request: Any) -> Any:
        try:
            _note(serving, request)
        except VLLMValidationError as error:
            return serving.create_error_response(error)
        return await stock(serving, request)

    return _check_model


def _read_and_carry(stock: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same where a request is rendered in a thread, which no context variable reaches."""

    @functools.wraps(stock)
    async def _check_model(serving: Any, request: Any) -> Any:
        variant = _note(serving, request).variant
        if variant is not None:
            given = getattr(request, FIELD, None) or {}
            request.mm_processor_kwargs = {**given, VARIANT_KEY: Variant(variant)}
        return await stock(serving, request)

    return _check_model


def _note(serving: Any, request: Any) -> Asked:
    name = request.model or ""
    model, variant = take_apart(serving.models, name)
    options = None
    if is_ours(serving.models):
        _refuse_misplaced(request)
        options = (getattr(request, FIELD, None) or {}).get(OPTIONS_KEY)
    elif getattr(request, _KEPT, False):
        _drop_kept(request)
    if variant is not None:
        request.model = model
    asked = Asked(name, variant, options)
    note(asked)
    return asked


def _drop_kept(request: Any) -> None:
    """Another model's request goes on without what stock vLLM would not have kept."""
    field: Any = getattr(request, FIELD, None)
    has_ours = isinstance(field, dict) and OPTIONS_KEY in field
    request.mm_processor_kwargs = {OPTIONS_KEY: field[OPTIONS_KEY]} if has_ours else None


def _refuse_misplaced(request: Any) -> None:
    """Options where no one would read them. Raises VLLMValidationError."""
    extra = getattr(request, "model_extra", None) or {}
    field, nested = getattr(request, FIELD, None) or {}, extra.get(_NESTED)
    if not isinstance(field, dict):
        raise refusal(f"{FIELD} is {as_json(field)}; allowed: an object, such as {_EXAMPLE}.")
    refuse_bare(field)
    if OPTIONS_KEY in extra:
        raise refusal(
            f"'{OPTIONS_KEY}' stands beside the request's fields; write "
            f"{spelled(extra[OPTIONS_KEY])}."
        )
    if isinstance(nested, Mapping) and not {OPTIONS_KEY, FIELD}.isdisjoint(nested):
        inner = nested.get(FIELD, {OPTIONS_KEY: nested.get(OPTIONS_KEY)})
        raise refusal(
            f"litelvlm options stand in '{_NESTED}', which is for the OpenAI client to take apart "
            f"and no field of a request; write {as_json({FIELD: inner}, 200)}."
        )


def _let_our_options_pass(stock: Callable[..., None]) -> Callable[..., None]:
    """Open vLLM's gate for ``litelvlm`` alone, which is validated and bounded by us.

    ``vllm serve`` refuses every per-request ``mm_processor_kwargs`` without
    ``--trust-request-mm-kwargs``; every other key still meets that check.
    """
    from vllm.exceptions import VLLMValidationError

    @functools.wraps(stock)
    def validate(*, mm_processor_kwargs: dict[str, Any] | None, **others: Any) -> None:
        given = mm_processor_kwargs
        if isinstance(given, dict):
            given = {key: value for key, value in given.items() if key != OPTIONS_KEY}
        try:
            stock(mm_processor_kwargs=given, **others)
        except VLLMValidationError:
            if isinstance(mm_processor_kwargs, dict):
                refuse_bare(mm_processor_kwargs)  # says more
            raise

    return validate


def _spell_field(stock: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Say how the field is written where a request's has the wrong type."""

    @functools.wraps(stock)
    async def validation_exception_handler(request: Any, error: Any) -> Any:
        for fault in error.errors():
            if isinstance(fault, dict) and FIELD in fault["loc"]:
                fault["msg"] += f"; litelvlm options are written {_EXAMPLE}"
        return await stock(request, error)

    return validation_exception_handler


def _check_options(stock: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Generative scoring renders no prompt: its options are checked here, and have no image."""

    @functools.wraps(stock)
    async def _build_prompts(serving: Any, *args: Any, **kwargs: Any) -> Any:
        asked = noted()
        if asked.options is not None and is_ours(serving):
            check_unused(serving.model_config, asked.options, asked.variant)
        return await stock(serving, *args, **kwargs)

    return _build_prompts


def _keep_fields(request_class: Any) -> None:
    """Let requests of an API keep fields that it does not know."""
    if request_class.model_config.get("extra") != "allow":
        request_class.model_config["extra"] = "allow"
        request_class.model_rebuild(force=True)


def _hand_on(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Give those that we read to the chat request that it becomes."""

    @functools.wraps(stock)
    def _build_base_request(*args: Any) -> Any:
        *_, request, messages = args
        chat = stock(request, messages)
        for name in (FIELD, OPTIONS_KEY, _NESTED):
            if name in (request.model_extra or {}):
                setattr(chat, name, request.model_extra[name])
                setattr(chat, _KEPT, True)
        return chat

    return _build_base_request
