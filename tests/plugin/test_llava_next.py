"""LLaVA-NeXT in the front end: prompts, refusals, and the sizes of a step's parts."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vllm import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import CompatibilityError, OptionsError
from vllm_litelvlm.plugin.models.llava_next import LiteLVLMLlavaNext, Tiles, layout_of
from vllm_litelvlm.plugin.models.pruned import Batch
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.processor import PARCELS_FIELD
from vllm_litelvlm.pruning.registry import method_names

PROMPT = "USER: <image>\nWhere is the red cup? ASSISTANT:"


def engine_config(checkpoint: Checkpoint, options: Any = None, **more: Any) -> Any:
    arguments: dict[str, Any] = {
        "model": str(checkpoint.llava),
        "dtype": "float32",
        "max_model_len": 2048,
        "additional_config": {"litelvlm": {"clip_model": str(checkpoint.clip), **(options or {})}},
    }
    return EngineArgs(**{**arguments, **more}).create_engine_config()


@pytest.fixture(scope="module")
def build(installed: None, llava_next: Checkpoint) -> Any:
    """Builds a processor under server options."""

    def with_options(options: Any = None, **more: Any) -> Any:
        config = engine_config(llava_next, options, **more)
        return MULTIMODAL_REGISTRY.create_processor(config.model_config)

    return with_options


@pytest.fixture(scope="module")
def processor(build: Any) -> Any:
    return build({"positions": "original"})


def apply(processor: Any, images: Sequence[object], options: Any = None, **kwargs: Any) -> Any:
    items = processor.info.parse_mm_data({"image": images}, validate=False)
    kwargs |= {} if options is None else {"litelvlm": options}
    prompt = PROMPT.replace("<image>", "<image>" * len(images))
    return processor(prompt, items, hf_processor_mm_kwargs=kwargs)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("seed", range(40))
def test_image_has_as_many_tokens_as_vllm_counts(processor: Any, seed: int) -> None:
    draw = random.Random(seed)
    height, width = (int(2 ** draw.uniform(0, 11)) for _ in range(2))
    counted = processor.info.get_num_image_tokens(image_width=width, image_height=height)
    assert layout_of(processor.info.get_hf_config(), (height, width)).tokens == counted


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (20, 13), (40, 400), (400, 40)])
@pytest.mark.parametrize("budget", [1, 1 / 9, 1 / 3, 64, 10_000, 1.0])
def test_prompt_has_as_many_placeholders_as_the_budget_of_base_and_tiles(
    processor: Any, size: tuple[int, int], budget: float
) -> None:
    layout = layout_of(processor.info.get_hf_config(), size)
    inputs = apply(processor, [picture(*size)], {"budget": budget})
    [place], [item] = inputs["mm_placeholders"]["image"], inputs["mm_kwargs"]["image"]
    count = budget if isinstance(budget, int) else int(budget * layout.tokens + 0.5)
    assert place.length == min(count, layout.tokens)
    assert item["pixel_values"].data.shape == (layout.tiles, 3, 112, 112)
    assert item["image_sizes"].data.tolist() == list(size)
    assert Parcel.unpack(item[PARCELS_FIELD].data).order.budget == place.length


def test_images_of_a_request_each_have_their_own_share(processor: Any) -> None:
    sizes = [(300, 500), (13, 20), (60, 400)]
    inputs = apply(processor, [picture(*size) for size in sizes], {"budget": 0.25})
    config = processor.info.get_hf_config()
    assert [place.length for place in inputs["mm_placeholders"]["image"]] == [
        int(0.25 * layout_of(config, size).tokens + 0.5) for size in sizes
    ]


@pytest.mark.parametrize("channels_first", [False, True])
def test_array_is_the_image_that_it_holds(processor: Any, channels_first: bool) -> None:
    image = picture(60, 100)
    array = np.array(image)
    given = np.moveaxis(array, -1, 0) if channels_first else array
    ours, theirs = (apply(processor, [one], {"budget": 50}) for one in (given, image))
    [item], [expected] = ours["mm_kwargs"]["image"], theirs["mm_kwargs"]["image"]
    assert torch.equal(item["pixel_values"].data, expected["pixel_values"].data)
    assert ours["mm_placeholders"]["image"][0].length == 50


def test_image_embeddings_are_refused(processor: Any) -> None:
    with pytest.raises(VLLMValidationError, match="image embeddings cannot be given directly"):
        apply(processor, [torch.zeros(336, 64)])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "tome"}, "which goes by tower as it is asked for; LLaVA-NeXT models do not"),
        ({"focus": 0.5}, "images of LLaVA-NeXT models come in one layer; leave it out"),
        ({"frame": "pad"}, "LLaVA-NeXT models see all of a picture as it is; leave it out"),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(
    processor: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(VLLMValidationError, match=told):
        apply(processor, [picture(100, 100)], {"budget": 64, **options})


def test_default_that_it_does_not_have_is_refused_at_start(
    installed: None, llava_next: Checkpoint
) -> None:
    with pytest.raises(OptionsError, match="They can run: litelvlm, fovea, random"):
        engine_config(llava_next, {"method": "tome"})


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_grid_pinpoints": [[112, 112]]},
        {"crop_size": {"height": 56, "width": 56}},
        {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
    ],
)
def test_request_cannot_have_other_tiles_than_the_model(
    processor: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(VLLMValidationError, match=r"mm_processor_kwargs .* change the tiles"):
        apply(processor, [picture(100, 300)], {"budget": 64}, **arguments)


def test_prompt_that_fits_only_pruned_is_refused(build: Any) -> None:
    processor = build({"positions": "original"}, limit_mm_per_prompt={"image": 20})
    images = [picture(300, 300, seed) for seed in range(13)]  # of 336 tokens
    with pytest.raises(VLLMValidationError, match=r"take up 4\d+ positions; allowed: 4096"):
        apply(processor, images, {"budget": 20})
    placed = apply(processor, images[:12], {"budget": 20})["mm_placeholders"]["image"]
    assert [place.length for place in placed] == [20] * 12
    assert apply(processor, images, {"budget": 20, "positions": "compact"})


def test_memory_profile_covers_the_costliest_request(build: Any) -> None:
    inputs = build().get_dummy_mm_inputs({"image": 2})
    assert [place.length for place in inputs["mm_placeholders"]["image"]] == [336, 336]
    order = Parcel.unpack(inputs["mm_kwargs"]["image"][0][PARCELS_FIELD].data).order
    assert {*order.pruner.model_dump()["methods"]} == {*method_names()} - {"tome"}


def test_other_tower_is_refused_at_start(
    installed: None, llava_next: Checkpoint, tmp_path: Path
) -> None:
    llava = Path(shutil.copytree(llava_next.llava, tmp_path / "llava"))
    file = llava / "config.json"
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 64, "image_size": 112}
    file.write_text(json.dumps({**json.loads(file.read_text()), "vision_config": siglip}))
    with pytest.raises(CompatibilityError, match="needs a CLIP vision tower; this model's is"):
        engine_config(Checkpoint(llava, llava_next.clip))


def test_step_is_split_by_what_the_tower_runs_on(processor: Any) -> None:
    sizes = [(300, 300), (40, 400), (13, 20), (300, 300)]
    config = processor.info.get_hf_config()
    layouts = [layout_of(config, size) for size in sizes]
    assert [(one.tiles, one.tokens) for one in layouts] == [
        (5, 336),
        (4, 64 + 2 * 25),
        (3, 64 + 8 * 13),
        (5, 336),
    ]
    media = Tiles([torch.zeros(one.tiles, 3, 2, 2) for one in layouts], layouts)
    nothing: Any = [None] * 4
    batch = Batch(media, nothing, nothing, nothing, nothing, nothing)
    parts = list(batch.parts(9 * 64))
    assert [part.media.load for part in parts] == [[320, 256], [192, 320]]
    assert [len(part.media.pixels) for part in parts] == [2, 2]
    assert len(list(batch.parts(8 * 64))) == 3


def test_family_is_found_by_its_architecture() -> None:
    from vllm_litelvlm.plugin.served import family

    assert family("LlavaNextForConditionalGeneration") is LiteLVLMLlavaNext.litelvlm_family


def test_picture_sent_by_its_name_alone_has_its_size(build: Any) -> None:
    processor = build()

    def named(image: Any, budget: float) -> Any:
        items = processor.info.parse_mm_data({"image": [image]}, validate=False)
        return processor(
            PROMPT,
            items,
            mm_uuid_items={"image": ["a name"]},
            hf_processor_mm_kwargs={"litelvlm": {"budget": budget}},
        )

    with pytest.raises(VLLMValidationError, match="its data is not provided"):
        named(None, 0.5)
    tokens = layout_of(processor.info.get_hf_config(), (300, 500)).tokens
    for image, budget in ((picture(300, 500), 0.5), (None, 0.25)):
        [place] = named(image, budget)["mm_placeholders"]["image"]
        assert place.length == int(budget * tokens + 0.5)
