"""The multimodal processor by itself, as vLLM's registry builds it."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.image_processing_backends import TorchvisionBackend
from vllm import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.renderers.base import BaseRenderer
from vllm.utils.torch_utils import set_default_torch_dtype

from tests.pruning.helpers import random_signals
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.plugin.models.llava import LiteLVLMLlava
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.processor import PARCELS_FIELD, _items
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.pruning.registry import method_names
from vllm_litelvlm.vision.pixels import PixelValues

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
        assert {*item} == {"pixel_values", PARCELS_FIELD}
        pixels = item["pixel_values"].data
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (336, 336, 3))
        parcel = Parcel.unpack(item[PARCELS_FIELD].data)
        assert (parcel.order.budget, len(parcel.text_ids), len(parcel.key)) == (64, 1, 32)


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
        ids = Parcel.unpack(item[PARCELS_FIELD].data).text_ids
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
    pruner = Parcel.unpack(item[PARCELS_FIELD].data).order.pruner
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
        processor._apply_hf_processor_main(_items({"image": [None]}), {"litelvlm": {}})


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


def numbers_of(processor: Any, pixels: torch.Tensor) -> torch.Tensor:
    assert processor.bytes_of is not None
    return PixelValues(processor.bytes_of, torch.float32)(pixels[None])


def test_pixels_travel_as_the_bytes_of_stocks_numbers(
    processor: Any, photographs: Sequence[Image.Image]
) -> None:
    [item] = apply(processor, photographs[:1])["mm_kwargs"]["image"]
    whole = processor.info.get_hf_processor()(images=photographs[:1], return_tensors="pt")
    assert torch.equal(numbers_of(processor, item["pixel_values"].data), whole["pixel_values"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_worker_has_the_pixels_of_the_front_end_whatever_dtype_it_builds_the_model_in(
    build: Any, checkpoint: Checkpoint, processor: Any, dtype: torch.dtype
) -> None:
    found = build()
    TorchvisionBackend._fuse_mean_std_and_rescale_factor.cache_clear()
    with set_default_torch_dtype(dtype):
        values = PixelValues(found.bytes_of, dtype)
    assert values._by_formula
    assert torch.equal(values.values, processor.bytes_of.values)
    # Nor does it spoil what the image processor remembers.
    image = Image.new("RGB", (40, 40), (200, 10, 10))
    alone = CLIPImageProcessor.from_pretrained(checkpoint.llava)(images=image, return_tensors="pt")
    again = found.info.get_hf_processor().image_processor(images=image, return_tensors="pt")
    assert torch.equal(again["pixel_values"], alone["pixel_values"])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.uint16])
def test_arrays_are_preprocessed_as_by_stock(processor: Any, dtype: Any) -> None:
    array = np.random.default_rng(3).integers(0, 256, (60, 80, 3)).astype(dtype)
    [item] = apply(processor, [array])["mm_kwargs"]["image"]
    stock = processor.info.get_hf_processor().image_processor(images=array, return_tensors="pt")
    assert torch.equal(item["pixel_values"].data, stock["pixel_values"])


def test_pixels_of_a_request_with_arguments_of_its_own_travel_as_numbers(
    processor: Any, photographs: Sequence[Image.Image]
) -> None:
    items = processor.info.parse_mm_data({"image": photographs[:1]}, validate=False)
    own = {"do_normalize": False, "do_rescale": False}
    [item] = processor(PROMPT, items, hf_processor_mm_kwargs=own)["mm_kwargs"]["image"]
    numbers = item["pixel_values"].data
    assert (numbers.shape, numbers.dtype) == ((1, 3, 336, 336), torch.float32)
    assert torch.equal(numbers[0], processor.bytes_of(photographs[0]).permute(2, 0, 1).float())


def test_step_of_bytes_and_numbers_is_one_tensor_of_numbers(processor: Any) -> None:
    values = PixelValues(processor.bytes_of, torch.float32)
    model = SimpleNamespace(litelvlm_pixels=values, litelvlm_patches=576)
    model.litelvlm_numbers = partial(LiteLVLMLlava.litelvlm_numbers, model)

    def together(fields: Any) -> torch.Tensor:
        return LiteLVLMLlava.litelvlm_media(model, {"pixel_values": fields}).pixels

    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    numbers = torch.randn(2, 1, 3, 8, 8)
    assert together(pixels) is pixels
    assert torch.equal(together(numbers), numbers[:, 0])
    mixed = together([pixels[0], numbers[1], pixels[1]])
    assert torch.equal(mixed, torch.stack([values(pixels)[0], numbers[1, 0], values(pixels)[1]]))


def test_server_with_arguments_for_the_processor_sends_numbers(checkpoint: Checkpoint) -> None:
    config = EngineArgs(
        model=str(checkpoint.llava),
        dtype="float32",
        mm_processor_kwargs={"do_convert_rgb": True},
        additional_config={"litelvlm": {"clip_model": str(checkpoint.clip)}},
    ).create_engine_config()
    found: Any = MULTIMODAL_REGISTRY.create_processor(config.model_config)
    assert found.bytes_of is None
