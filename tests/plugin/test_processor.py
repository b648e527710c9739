"""The multimodal processor by itself, as vLLM's registry builds it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from vllm import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.renderers.base import BaseRenderer

from tests.pruning.helpers import random_signals
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.plugin.plan import WorkOrder
from vllm_litelvlm.plugin.processor import ORDERS_FIELD, TEXT_IDS_FIELD
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.pruning.registry import method_names

PROMPT = "USER: <image>\nWhere is the red cup? ASSISTANT:"


@pytest.fixture(scope="module")
def build(installed: None, checkpoint: Checkpoint) -> Any:
    """Builds a processor under server options."""

    def with_options(**options: Any) -> Any:
        config = EngineArgs(
            model=str(checkpoint.llava),
            dtype="float32",
            max_model_len=2048,
            additional_config={"litelvlm": {"clip_model": str(checkpoint.clip), **options}},
        ).create_engine_config()
        return MULTIMODAL_REGISTRY.create_processor(config.model_config)

    return with_options


@pytest.fixture(scope="module")
def processor(build: Any) -> Any:
    return build()


def apply(processor: Any, images: Sequence[object], options: Any = None) -> Any:
    items = processor.info.parse_mm_data({"image": images}, validate=False)
    kwargs = {} if options is None else {"litelvlm": options}
    prompt = PROMPT.replace("<image>", "<image>" * len(images))
    return processor(prompt, items, hf_processor_mm_kwargs=kwargs)


def test_image_embeddings_are_refused_even_where_vllm_takes_them(processor: Any) -> None:
    with pytest.raises(VLLMValidationError, match="image embeddings cannot be given directly"):
        apply(processor, [torch.zeros(576, 64)])


def test_prompt_has_as_many_placeholders_as_the_plan_keeps(
    processor: Any, photographs: Sequence[Image.Image]
) -> None:
    inputs = apply(processor, photographs[:2], {"budget": 64})
    first, second = inputs["mm_placeholders"]["image"]
    assert (first.length, second.length) == (64, 64)
    for item in inputs["mm_kwargs"]["image"]:
        assert item[ORDERS_FIELD].data.dtype == torch.uint8
        assert item[TEXT_IDS_FIELD].data.shape[0] == 1


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ({"budget": 64}, {"budget": 64, "texts": ["Where is the red cup?"]}, True),
        ({"budget": 64}, {"budget": 64, "texts": ["Where is the cup?"]}, False),
        ({"budget": 64}, {"budget": 65}, False),
        ({"budget": 64}, {"budget": 64, "variant": "reference"}, False),
        ({"budget": 64, "texts": ["a", "b"]}, {"budget": 64, "texts": ["a"]}, False),
        (
            {"budget": 64, "method": "random", "texts": ["a"]},
            {"budget": 64, "method": "random"},
            True,
        ),
        ({"budget": 576}, {"method": "keep-all"}, True),
        ({"budget": 192}, None, True),
    ],
)
def test_identity_follows_what_is_kept_and_why(
    processor: Any, photographs: Sequence[Image.Image], left: Any, right: Any, same: bool
) -> None:
    hashes = [
        apply(processor, photographs[:1], options)["mm_hashes"]["image"]
        for options in (left, right)
    ]
    assert (hashes[0] == hashes[1]) == same


@pytest.mark.parametrize(("options", "tokens"), [({}, 576), ({"max_budget": 192}, 192)])
def test_memory_profile_covers_the_costliest_request(
    build: Any, options: dict[str, Any], tokens: int
) -> None:
    inputs = build(max_texts=5, **options).get_dummy_mm_inputs({"image": 2})
    assert [place.length for place in inputs["mm_placeholders"]["image"]] == [tokens, tokens]
    for item in inputs["mm_kwargs"]["image"]:
        ids = item[TEXT_IDS_FIELD].data
        assert ids.shape == (5, 77)
        assert len(ids.unique(dim=0)) == 5


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        ({}, list(method_names())),
        ({"methods": ["tome", "litelvlm"]}, ["tome", "litelvlm"]),
        ({"method": "random", "request_options": False}, ["random"]),
    ],
)
def test_memory_profile_runs_every_method_that_requests_may_name(
    build: Any, options: dict[str, Any], methods: list[str]
) -> None:
    inputs = build(**options).get_dummy_mm_inputs({"image": 1})
    [item] = inputs["mm_kwargs"]["image"]
    pruner = WorkOrder.decode(item[ORDERS_FIELD].data).pruner
    assert isinstance(pruner, Profile)
    assert pruner.methods == methods
    signals = random_signals([2])
    assert pruner.needs <= {*signals.values, Signal.TOWER}
    assert pruner.select(signals, 64).tokens.shape[1] == 64


def test_request_cannot_name_the_memory_profile(
    processor: Any, photographs: Sequence[Image.Image]
) -> None:
    with pytest.raises(VLLMValidationError, match="'method' is \"profile\"; allowed"):
        apply(processor, photographs[:1], {"method": "profile"})


def test_guide_all_takes_the_latest_turns_when_there_are_too_many(
    build: Any, photographs: Sequence[Image.Image]
) -> None:
    processor = build(max_texts=2, guide="all")
    items = processor.info.parse_mm_data({"image": photographs[:1]}, validate=False)
    prompt = "USER: <image>\nOne? ASSISTANT: A. USER: Two? ASSISTANT: B. USER: Three? ASSISTANT:"
    inputs = processor(prompt, items)
    named = processor(
        prompt, items, hf_processor_mm_kwargs={"litelvlm": {"texts": ["Two?", "Three?"]}}
    )
    assert inputs["mm_hashes"] == named["mm_hashes"]


def test_named_picture_that_nobody_has_is_refused_without_vllms_cache(processor: Any) -> None:
    with pytest.raises(VLLMValidationError, match="its data is not provided and not in any cache"):
        processor._call_hf_processor({"images": [None]}, {"litelvlm": []})


def test_pixels_are_kept_until_vllm_clears_its_cache(build: Any) -> None:
    processor = build()
    image = Image.new("RGB", (40, 40), (200, 10, 10))
    apply(processor, [image], {"budget": 64})
    assert len(processor._pixels) == 1
    cleared = BaseRenderer.clear_mm_cache
    renderer = SimpleNamespace(
        _mm_processor_cache=None,
        _mm_cache_stats=None,
        mm_processor=processor,
        model_config=processor.info.ctx.model_config,
    )
    cleared(renderer)
    assert (len(processor._pixels), processor._pixels._bytes) == (0, 0)
