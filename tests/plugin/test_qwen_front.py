"""Qwen-VLs in the front end: prompts, identities and refused starts."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.processing import ProcessorInputs
from vllm.multimodal.processing.context import TimingContext

from vllm_litelvlm.demo.qwen import build_qwen
from vllm_litelvlm.plugin.config import LiteLVLMConfigHook
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.processor import PARCELS
from vllm_litelvlm.plugin.register import install

IMAGE, VIDEO = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{}Where is the red cup?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def folder(
    request: pytest.FixtureRequest, installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return build_qwen(tmp_path_factory.mktemp(request.param), request.param)


def config(folder: Path, options: Any = None, **arguments: Any) -> Any:
    return EngineArgs(
        model=str(folder),
        dtype="float32",
        max_model_len=2048,
        additional_config={"litelvlm": options or {}},
        **arguments,
    ).create_engine_config()


def build(folder: Path, **options: Any) -> Any:
    return MULTIMODAL_REGISTRY.create_processor(config(folder, options).model_config)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return build(folder)


def apply(processor: Any, data: dict[str, Any], options: Any = None, prompt: str = PROMPT) -> Any:
    items = processor.info.parse_mm_data(data, validate=False)
    marks = IMAGE * len(data.get("image", [])) + VIDEO * len(data.get("video", []))
    kwargs = {} if options is None else {"litelvlm": options}
    return processor(prompt.format(marks), items, hf_processor_mm_kwargs=kwargs)


def video(frames: int) -> tuple[np.ndarray, dict[str, Any]]:
    pixels = np.random.default_rng(frames).integers(0, 256, (frames, 96, 160, 3), dtype=np.uint8)
    known = {
        "fps": 2.0,
        "duration": frames / 2,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return pixels, known


def kept(inputs: Any, modality: str = "image") -> list[int]:
    """How many placeholders stand for each item."""
    return [place.get_num_embeds() for place in inputs["mm_placeholders"][modality]]


def test_budget_is_a_fraction_of_each_image_or_a_count_that_is_clipped(
    processor: Any, photographs: Sequence[Image.Image]
) -> None:
    images = [photographs[1], photographs[1].resize((90, 60))]
    whole = kept(apply(processor, {"image": images}, {"budget": 1.0}))
    assert whole[0] > 200 > 20 > whole[1]
    half = kept(apply(processor, {"image": images}, {"budget": 0.5}))
    assert half == [int(tokens * 0.5 + 0.5) for tokens in whole]
    assert kept(apply(processor, {"image": images}, {"budget": 64})) == [64, whole[1]]


def test_budget_of_a_video_is_each_frames(processor: Any) -> None:
    for frames in (4, 5, 6):
        whole = kept(apply(processor, {"video": [video(frames)]}, {"budget": 1.0}), "video")
        some = apply(processor, {"video": [video(frames)]}, {"budget": 3})
        pairs = (frames + 1) // 2
        assert whole[0] % pairs == 0
        assert kept(some, "video") == [3 * pairs]
        [item] = some["mm_kwargs"]["video"]
        assert Parcel.unpack(item[PARCELS["video"]].data).order.count == 3


def test_video_that_came_encoded_is_the_video(processor: Any) -> None:
    sent = MediaWithBytes(video(4), b"as it was sent")
    for options in ({"budget": 1.0}, {"budget": 3}):
        ours = kept(apply(processor, {"video": [sent]}, options), "video")
        assert ours == kept(apply(processor, {"video": [video(4)]}, options), "video")


def test_long_texts_guide_by_their_beginning(
    processor: Any, photographs: Sequence[Image.Image]
) -> None:
    texts = ["a cup " * 5000, "a cup"]
    data = {"image": photographs[:1]}
    [item] = apply(processor, data, {"budget": 3, "texts": texts[1:]})["mm_kwargs"]["image"]
    assert Parcel.unpack(item[PARCELS["image"]].data).text_ids.shape[1] < 10
    with pytest.raises(VLLMValidationError, match="a text of 30000 characters"):
        apply(processor, data, {"budget": 3, "texts": texts})
    asked = PROMPT.replace("Where is the red cup?", "a cup " * 300)
    [item] = apply(processor, data, {"budget": 3}, asked)["mm_kwargs"]["image"]
    assert Parcel.unpack(item[PARCELS["image"]].data).text_ids.shape == (1, 256)


def test_name_stands_for_a_picture_of_one_kind_read_in_one_way(
    folder: Path, photographs: Sequence[Image.Image]
) -> None:
    processor = build(folder)

    def named(modality: str, given: Any, read: dict[str, Any]) -> Any:
        items = processor.info.parse_mm_data({modality: [given]}, validate=False)
        mark = IMAGE if modality == "image" else VIDEO
        inputs = ProcessorInputs(
            processor.info.get_tokenizer().encode(PROMPT.format(mark)),
            items,
            {modality: ["its name"]},
            hf_processor_mm_kwargs={"litelvlm": {"budget": 3}},
            media_io_kwargs={modality: read},
        )
        return processor.apply(inputs, TimingContext(enabled=False))["mm_hashes"][modality]

    first = named("image", photographs[0], {})
    for modality, read in (("video", {}), ("image", {"num_frames": 4})):
        with pytest.raises(VLLMValidationError, match="not in any cache"):
            named(modality, None, read)
    assert named("image", None, {}) == first
    assert named("video", video(4), {}) != first


def test_images_and_a_video_of_one_request_have_each_a_plan(
    processor: Any, photographs: Sequence[Image.Image]
) -> None:
    inputs = apply(processor, {"image": photographs[:2], "video": [video(4)]}, {"budget": 5})
    assert (kept(inputs), kept(inputs, "video")) == ([5, 5], [10])


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ({"budget": 3}, {"budget": 3, "texts": ["Where is the red cup?"]}, True),
        ({"budget": 3}, {"budget": 3, "texts": ["Where is the cup?"]}, False),
        ({"budget": 3}, {"budget": 3, "positions": "compact"}, False),
        ({"budget": 5000}, {"method": "keep-all"}, True),
        ({"budget": 3, "method": "fovea"}, {"budget": 3, "method": "fovea", "text": 8}, True),
        (
            {"budget": 3, "method": "fovea"},
            {"budget": 3, "method": "fovea", "guidance": "similarity"},
            True,
        ),
    ],
)
def test_identity_follows_what_is_kept_and_why(
    processor: Any, photographs: Sequence[Image.Image], left: Any, right: Any, same: bool
) -> None:
    for data in ({"image": photographs[:1]}, {"video": [video(4)]}):
        hashes = [apply(processor, data, options)["mm_hashes"] for options in (left, right)]
        assert (hashes[0] == hashes[1]) == same


def test_fractions_stay_within_the_servers_bounds_and_counts_are_refused(
    folder: Path, photographs: Sequence[Image.Image]
) -> None:
    processor = build(folder, min_budget=10, max_budget=50)
    images = [photographs[1], photographs[1].resize((90, 60))]
    assert kept(apply(processor, {"image": images}))[0] == 50
    assert kept(apply(processor, {"image": images}, {"budget": 0.01}))[0] == 10
    with pytest.raises(VLLMValidationError, match=r"comes to \d+ tokens; this server allows 10"):
        apply(processor, {"image": images}, {"method": "keep-all"})
    for budget in (9, 51):
        with pytest.raises(VLLMValidationError, match=f"comes to {budget} tokens; this server"):
            apply(processor, {"image": images}, {"budget": budget})


def test_memory_profile_has_images_and_videos_of_every_method(processor: Any) -> None:
    inputs = processor.get_dummy_mm_inputs({"image": 1, "video": 1})
    for modality in ("image", "video"):
        [item] = inputs["mm_kwargs"][modality]
        order = Parcel.unpack(item[PARCELS[modality]].data).order
        assert {"litelvlm", "fovea", "cdpruner"} <= {*order.pruner.methods}
        assert "tome" not in order.pruner.methods


def test_prompt_that_ends_in_an_image_is_refused_where_it_could_not_go_on(
    processor: Any, photographs: Sequence[Image.Image]
) -> None:
    ending = "<|im_start|>user\n<|vision_start|><|image_pad|>"
    data = {"image": photographs[:1]}
    with pytest.raises(VLLMValidationError, match="a prompt that ends in an image"):
        apply(processor, data, {"budget": 8}, ending)
    for options in ({"budget": 8, "positions": "compact"}, {"budget": 1.0}):
        apply(processor, data, options, ending)


def test_positions_beyond_the_models_are_refused(
    folder: Path, photographs: Sequence[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_litelvlm.plugin.processor.position_limit", lambda config: 40)
    processor = build(folder)
    long = {"image": [photographs[1].resize((1200, 60))]}
    with pytest.raises(VLLMValidationError, match=r"take up \d+ positions; allowed: 40"):
        apply(processor, long, {"budget": 2})
    assert kept(apply(processor, long, {"budget": 2, "positions": "compact"})) == [2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"video_pruning_rate": 0.5}, "--video-pruning-rate is 0.5, by which vLLM prunes"),
        ({"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data spreads over ranks"),
        ({"compilation_config": {"compile_mm_encoder": True}}, "into a compiled vision tower"),
        ({"options": {"method": "tome"}}, "which goes by tower as it is asked for; Qwen"),
        ({"options": {"method": "fovea", "focus": 0.25}}, "'focus' is 0.25, but images of Qwen"),
        ({"options": {"variants": {"a": {"frame": "pad"}}}}, "Variant 'a': litelvlm option 'fra"),
    ],
)
def test_server_that_could_not_prune_is_refused_at_start(
    folder: Path, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(Exception, match=told):
        config(folder, **arguments)


def test_tower_whose_last_block_sees_windows_is_refused_at_start(
    installed: None, tmp_path: Path
) -> None:
    folder = build_qwen(tmp_path / "whole", "qwen2_5_vl")
    changed = Path(shutil.copytree(folder, tmp_path / "windows"))
    fields = json.loads((changed / "config.json").read_text())
    fields["vision_config"]["fullatt_block_indexes"] = [1]
    (changed / "config.json").write_text(json.dumps(fields))
    with pytest.raises(Exception, match=r"last block \(number 3\) attends to the whole image"):
        config(changed)


def test_gate_of_positions_is_opened_only_where_they_are_asked_for(folder: Path) -> None:
    def rate(options: Any) -> float | None:
        found: float | None = config(
            folder, options
        ).model_config.multimodal_config.video_pruning_rate
        return found

    assert rate({}) == 1e-17
    LiteLVLMConfigHook.verify_and_update_config(config(folder))  # vLLM may ask again
    assert 1 - 1e-17 == 1.0
    assert rate({"positions": "compact"}) is None


def test_vllms_own_hook_for_an_architecture_is_asked_too(folder: Path) -> None:
    """It alone knows in what a Qwen3.5 keeps its recurrent state."""
    if folder.name.startswith("qwen3_5"):
        assert config(folder).cache_config.mamba_ssm_cache_dtype == "float32"
    [hook] = {MODELS_CONFIG_MAP[name] for name in config(folder).model_config.architectures}
    install()
    assert MODELS_CONFIG_MAP[config(folder).model_config.architectures[0]] is hook
