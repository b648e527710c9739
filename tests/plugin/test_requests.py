"""What is read of a request before vLLM does; tests/e2e/test_ways_in.py has it on every API."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.pooling.base.serving import PoolingBaseServing
from vllm.entrypoints.pooling.embed.protocol import CohereEmbedRequest
from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.exceptions import VLLMValidationError
from vllm.renderers import online_renderer

from tests.plugin.test_variants import registry
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import ServerOptions, parse_request_options
from vllm_litelvlm.plugin.asked import VARIANT_KEY, noted

pytestmark = pytest.mark.usefixtures("installed")

OPTIONS = {"litelvlm": {"budget": 64}}


def check(request: Any, ours: bool = True) -> object:
    """The options that are noted of a request; an error's sentence, if it is refused."""
    models = registry("m", ours=ours)
    models.lora_requests = {}

    async def run() -> object:
        error = await BaseServing(models, models.model_config)._check_model(request)
        return noted().options if error is None else error.error.message

    return asyncio.run(run())


def messages(**said: Any) -> Any:
    """A request of Anthropic's API, as the chat request that vLLM makes of it."""
    asked = AnthropicMessagesRequest(model="m", messages=[], max_tokens=1, **said)
    return AnthropicServingMessages._build_base_request(asked, [{"role": "user", "content": "a"}])


def test_options_of_apis_that_know_no_such_field_are_kept() -> None:
    assert check(messages(mm_processor_kwargs=OPTIONS)) == {"budget": 64}
    generate = {"token_ids": [1], "sampling_params": {}, "model": "m"}
    assert check(GenerateRequest.model_validate({**generate, "mm_processor_kwargs": OPTIONS})) == {
        "budget": 64
    }


def test_another_models_request_goes_on_as_stock_vllm_reads_it() -> None:
    request = messages(mm_processor_kwargs={"num_crops": 4}, extra_body={"litelvlm": {}})
    assert check(request, ours=False) is None
    assert request.mm_processor_kwargs is None
    told = messages(mm_processor_kwargs={**OPTIONS, "num_crops": 4})
    assert check(told, ours=False) is None
    assert told.mm_processor_kwargs == OPTIONS  # to be refused by name


def test_names_of_our_options_may_be_those_of_another_processor() -> None:
    gate = online_renderer.validate_request_mm_kwargs
    told: dict[str, Any] = {"mm_processor_kwargs": {"frame": 3}, "media_io_kwargs": None}
    gate(**told, trust_request_mm_kwargs=True)
    with pytest.raises(VLLMValidationError, match="litelvlm options stand directly in"):
        gate(**told, trust_request_mm_kwargs=False)


def test_variant_of_a_request_without_such_a_field_is_carried() -> None:
    models: Any = registry("m")
    models.lora_requests = {}
    request = CohereEmbedRequest(model="m:fast", images=["data:image/png;base64,"])
    serving: Any = SimpleNamespace(models=models, _is_model_supported=models.is_base_model)
    asyncio.run(PoolingBaseServing._check_model(serving, request))
    assert request.model == "m"
    assert request.mm_processor_kwargs == {VARIANT_KEY: "fast"}  # type: ignore[attr-defined]


def test_whatever_is_no_option_is_answered_with_a_sentence() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in ("[" * 1000, deep, "\ud800", {"budget": {"a": [None]}}, 10**5000, {"x": object()}):
        request = messages()
        request.litelvlm = value
        assert "stands beside the request's fields" in str(check(request))
        if not isinstance(value, dict):
            with pytest.raises(OptionsError):
                parse_request_options(value, ServerOptions())
        if not isinstance(value, int):
            with pytest.raises(OptionsError):
                parse_request_options({"budget": value}, ServerOptions())
