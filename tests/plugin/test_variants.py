"""Names of variants, taken apart; tests/e2e/test_variants.py has them on every endpoint."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry
from vllm.entrypoints.pooling.base.serving import PoolingBaseServing
from vllm.entrypoints.serve.engine.serving import BaseServing

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.options import parse_server_options
from vllm_litelvlm.plugin.asked import VARIANT_KEY, noted
from vllm_litelvlm.plugin.compat import _pass_on

pytestmark = pytest.mark.usefixtures("installed")


def registry(*names: str, ours: bool = True) -> Any:
    second = {"served_model_name": "m-second"}
    server = parse_server_options({"variants": {"fast": {"budget": 64}, "v.2": second}})
    config = SimpleNamespace(litelvlm={"server": server.model_dump()}) if ours else object()
    paths = [BaseModelPath(name=name, model_path="/model") for name in names]
    model: Any = SimpleNamespace(
        hf_config=config,
        max_model_len=8,
        architectures=["LlavaForConditionalGeneration" if ours else "Other"],
    )
    return OpenAIModelRegistry(model, paths)


def check(models: Any, name: str | None) -> tuple[str | None, str | None, bool]:
    """The model that is left, the variant, and whether vLLM knows the model."""

    async def run() -> tuple[str | None, str | None, bool]:
        request: Any = SimpleNamespace(model=name)
        error = await BaseServing(models, models.model_config)._check_model(request)
        return request.model, noted().variant, error is None

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "model", "variant", "known"),
    [
        ("m", "m", None, True),
        ("m:fast", "m", "fast", True),
        ("m:v.2", "m", "v.2", True),
        ("other:fast", "other", "fast", True),
        ("adapter:fast", "adapter", "fast", True),
        ("my:adapter:fast", "my:adapter", "fast", True),
        ("odd:fast", "odd:fast", None, True),  # an adapter of that very name
        ("m:fats", "m:fats", None, False),
        ("n:fast", "n", "fast", False),
        ("m:fast:fast", "m:fast:fast", None, False),
        (":fast", ":fast", None, False),
        ("own:fast", "own:fast", None, True),
        ("m-second", "m", "v.2", True),
        ("m-second:fast", "m-second:fast", None, False),
        ("own:fast:v.2", "own:fast", "v.2", True),
        (None, None, None, True),
    ],
)
def test_name_is_taken_apart(
    name: str | None, model: str | None, variant: str | None, known: bool
) -> None:
    models = registry("m", "other", "own:fast")
    models.lora_requests = {"adapter": object(), "my:adapter": object(), "odd:fast": object()}
    assert check(models, name) == (model, variant, known)


def test_variants_are_listed_behind_the_models_own_names() -> None:
    listed = asyncio.run(registry("m", "other").show_available_models()).data
    assert [card.id for card in listed] == [
        *("m", "other", "m:fast", "m:v.2", "other:fast", "other:v.2", "m-second")
    ]


def test_another_model_has_no_variants() -> None:
    models = registry("m", ours=False)
    assert check(models, "m:fast") == ("m:fast", None, False)
    assert [path.name for path in models.base_model_paths] == ["m"]


def test_name_that_is_taken_is_refused() -> None:
    for taken in ("m:fast", "m-second"):
        with pytest.raises(CompatibilityError, match=f"'{taken}' would name two models"):
            registry("m", taken)


def test_variant_reaches_a_thread_that_renders() -> None:
    """As vLLM's pooling endpoints render; a context variable does not."""
    models = registry("m")

    async def run(name: str) -> Any:
        request: Any = SimpleNamespace(model=name, mm_processor_kwargs={"litelvlm": {"budget": 9}})
        serving = SimpleNamespace(
            models=models, _is_model_supported=models.is_base_model, model_config=None
        )
        await PoolingBaseServing._check_model(serving, request)  # type: ignore[arg-type]
        prompt = {"multi_modal_data": {}, "mm_processor_kwargs": request.mm_processor_kwargs}
        prompt["multi_modal_data"] = {"image": [0]}
        model: Any = models.model_config
        await asyncio.get_running_loop().run_in_executor(None, _pass_on, model, prompt)
        return prompt["mm_processor_kwargs"]

    options = {"litelvlm": {"budget": 9}}
    assert asyncio.run(run("m:fast")) == {**options, VARIANT_KEY: "fast"}
    assert asyncio.run(run("m")) == options


def test_client_cannot_name_a_variant_by_our_own_key() -> None:
    prompt = {"multi_modal_data": {"image": [0]}, "mm_processor_kwargs": {VARIANT_KEY: "fast"}}
    _pass_on(None, prompt)
    assert prompt["mm_processor_kwargs"] == {}
