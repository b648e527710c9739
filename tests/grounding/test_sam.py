"""SAM's masks against a derivation of their own, for pictures of every shape."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SamConfig, SamImageProcessor, SamImageProcessorPil

from tests.grounding.conftest import SIZES, noise
from tests.grounding.rederivation import Slow
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.grounding import GroundingGeometry, _write_sam
from vllm_litelvlm.errors import CompatibilityError, WeightsError
from vllm_litelvlm.grounding.masks import Mask
from vllm_litelvlm.grounding.picture import Fit
from vllm_litelvlm.grounding.sam import Sam

#: Logits (of deviation 2 or so) nearer to 0 than this may fall on either side of it.
NEAR = 1e-4
#: Of a processor's defaults, on the scale 0 to 255.
MEAN, DEVIATION = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


@pytest.fixture(scope="module")
def slow(model: str) -> Slow:
    return Slow.load(model)


def differing(left: list[Mask], right: list[Mask]) -> int:
    return sum(int((a.pixels != b.pixels).sum()) for a, b in zip(left, right, strict=True))


def check(sam: Sam, slow: Slow, picture: Image.Image, prompts: Tensor) -> list[Mask]:
    """Masks of a picture, which equal the slow ones."""
    masks = sam.masks(sam.encode(picture), prompts, picture.size)
    features = slow.features(picture)
    for mask, prompt in zip(masks, prompts, strict=True):
        low, score = slow.logits(features, prompt)
        logits = slow.resized(low, picture.size)
        assert mask.pixels.shape == logits.shape == picture.size[::-1]
        assert mask.pixels.dtype == np.bool_
        assert mask.score == pytest.approx(score, abs=1e-4)
        clear = np.abs(logits) > NEAR
        assert clear.mean() > 0.999 or logits.size < 100
        assert np.array_equal(mask.pixels[clear], logits[clear] > 0)
    return masks


@pytest.mark.parametrize("name", SIZES)
def test_masks_equal_the_slow_derivation(
    name: str, sam: Sam, slow: Slow, prompts: Tensor, pictures: dict[str, Image.Image]
) -> None:
    some = prompts if name != "huge" else prompts[:2]
    masks = check(sam, slow, pictures[name], some)
    if name not in ("pixel", "tiny"):
        assert len({mask.rle()["counts"] for mask in masks}) == len(some)
        assert all(0.01 < mask.pixels.mean() < 0.995 for mask in masks)


def test_sam_of_other_sizes_gives_the_slow_derivations_masks(tmp_path: Path) -> None:
    geometry = GroundingGeometry(
        sam_image_size=96,
        sam_patch_size=8,
        sam_width=24,
        sam_heads=3,
        sam_window=5,
        sam_prompt_width=64,
        sam_decoder_mlp=40,
    )
    torch.manual_seed(3)
    _write_sam(tmp_path / "sam", geometry)
    sam = Sam.load(str(tmp_path))
    assert (sam.prompt_width, sam.side) == (64, 96)
    prompts = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    check(sam, Slow.load(str(tmp_path)), noise(70, 110), prompts)


@pytest.mark.parametrize("size", [(333, 517), (1500, 900), (64, 48), (3000, 2)])
def test_pixels_are_those_of_transformers_processors(size: tuple[int, int]) -> None:
    picture = noise(*size)
    fit = Fit(1024, height=size[1], width=size[0])
    ours = fit.pixels(picture, MEAN, DEVIATION)
    height, width = fit.resized
    exact, tensors = (
        processor()(picture, return_tensors="pt")
        for processor in (SamImageProcessorPil, SamImageProcessor)
    )
    assert exact["reshaped_input_sizes"].tolist() == [[height, width]]
    torch.testing.assert_close(ours, exact["pixel_values"][0], atol=1e-5, rtol=0)
    # torchvision resizes tensors to other levels, by one, here and there.
    levels = (ours - tensors["pixel_values"][0]) * DEVIATION[:, None, None]
    assert levels.abs().max() < 1.001
    assert (levels.abs() > 0.5).float().mean() < 0.01
    assert not ours[:, height:].any()
    assert not ours[:, :, width:].any()


def test_masks_are_those_of_transformers_own_postprocessing() -> None:
    logits = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    for width, height in SIZES.values():
        fit = Fit(256, height=height, width=width)
        side = {"height": 256, "width": 256}
        theirs = SamImageProcessor().post_process_masks(
            [logits[None]], [(height, width)], [fit.resized], pad_size=side
        )
        assert torch.equal(fit.masks(logits), theirs[0][0])


def test_picture_too_thin_for_the_original_has_masks(sam: Sam, prompts: Tensor) -> None:
    for size in ((3000, 1), (1, 3000)):
        with pytest.raises(ValueError, match="Size must contain"):
            SamImageProcessorPil()(noise(*size))
        picture = noise(*size)
        masks = sam.masks(sam.encode(picture), prompts[:1], picture.size)
        assert masks[0].pixels.shape == picture.size[::-1]


def test_mask_is_the_same_alone_and_beside_others(
    sam: Sam, prompts: Tensor, pictures: dict[str, Image.Image]
) -> None:
    features = sam.encode(pictures["landscape"])
    together, scores = sam.decode(features, prompts)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    shuffled, _ = sam.decode(features, prompts[order])
    torch.testing.assert_close(shuffled, together[order], atol=NEAR / 3, rtol=0)
    for number, prompt in enumerate(prompts):
        alone, score = sam.decode(features, prompt[None])
        torch.testing.assert_close(alone[0], together[number], atol=NEAR / 3, rtol=0)
        torch.testing.assert_close(score[0], scores[number], atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 4])
def test_masks_are_the_same_in_parts(
    chunk: int,
    sam: Sam,
    model: str,
    prompts: Tensor,
    pictures: dict[str, Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = pictures["portrait"]
    each = (1 << 29) // sam.chunk(picture.size)
    bounded = Sam.load(model, working_bytes=chunk * each + each // 2)
    assert bounded.chunk(picture.size) == chunk < len(prompts) < sam.chunk(picture.size)
    sizes = []
    decode = bounded.decode
    monkeypatch.setattr(
        bounded,
        "decode",
        lambda features, part: (sizes.append(len(part)), decode(features, part))[1],
    )
    features = sam.encode(picture)
    whole, parts = (each.masks(features, prompts, picture.size) for each in (sam, bounded))
    assert sizes == [chunk] * (9 // chunk) + [9 % chunk] * bool(9 % chunk)
    assert differing(whole, parts) <= 9 * picture.width * picture.height * 1e-5
    assert Sam.load(model, working_bytes=1).chunk((9000, 9000)) == 1


def test_no_expressions_have_no_masks(sam: Sam, pictures: dict[str, Image.Image]) -> None:
    features = sam.encode(pictures["tiny"])
    assert sam.masks(features, torch.zeros(0, sam.prompt_width), (5, 3)) == []


@pytest.mark.parametrize(
    ("shape", "fill", "message"),
    [
        ((2, 64), 0.0, r"shape \[2, 64\]; this SAM takes \[expressions, 256\]"),
        ((256,), 0.0, r"shape \[256\]"),
        ((3, 256), torch.nan, r"expressions \[0, 1, 2\] are not finite"),
    ],
)
def test_prompts_that_cannot_be_are_refused(
    shape: tuple[int, ...], fill: float, message: str, sam: Sam, pictures: dict[str, Image.Image]
) -> None:
    with pytest.raises(CompatibilityError, match=message):
        sam.masks(sam.encode(pictures["tiny"]), torch.full(shape, fill), (5, 3))


def _rewrite(file: Path, change: dict[str, object]) -> None:
    fields = json.loads(file.read_text())
    for name, value in change.items():
        part, _, own = name.rpartition(".")
        (fields[part] if part else fields)[own] = value
    file.write_text(json.dumps(fields))


@pytest.fixture
def copy(model: str, tmp_path: Path) -> Path:
    """A copy of the SAM alone, to break; its folder."""
    return Path(shutil.copytree(Path(model) / "sam", tmp_path / "sam"))


def test_model_without_a_sam_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for model in (str(checkpoint.llava), str(tmp_path), "nobody/has-this"):
        with pytest.raises(WeightsError, match="subfolder 'sam'"):
            Sam.load(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "sam2"}, "model_type is 'sam2', not 'sam'"),
        ({"vision_config": 3}, "No SAM configuration"),
        (
            {"mask_decoder_config.hidden_size": 128},
            "mask_decoder_config.hidden_size is 128 and has to be 256",
        ),
        ({"vision_config.num_pos_feats": 64}, "num_pos_feats is 128 and has to be 256"),
        ({"vision_config.image_size": 512}, "image_size is 512 and has to be 256"),
        ({"mask_decoder_config.mlp_dim": 64}, r"0\.mlp\.lin1\.bias' has shape \[128\]"),
    ],
)
def test_sam_whose_parts_do_not_fit_is_refused(
    change: dict[str, object], message: str, copy: Path
) -> None:
    _rewrite(copy / "config.json", change)
    with pytest.raises(WeightsError, match=message):
        Sam.load(str(copy.parent))


def test_sam_whose_files_are_not_whole_is_refused(copy: Path) -> None:
    weights, processor = copy / "model.safetensors", copy / "preprocessor_config.json"
    whole = processor.read_text()
    _rewrite(processor, {"size": {"shortest_edge": 256}})
    with pytest.raises(WeightsError, match=r"it has no 'longest_edge'"):
        Sam.load(str(copy.parent))
    processor.write_text(whole)
    _rewrite(processor, {"size": {"longest_edge": 1024}})
    with pytest.raises(WeightsError, match=r"longest_edge is 1024, the model's image_size 256"):
        Sam.load(str(copy.parent))
    processor.unlink()
    with pytest.raises(WeightsError, match=r"The preprocessor_config\.json in the subfolder 'sam'"):
        Sam.load(str(copy.parent))
    tensors = load_file(weights)
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"no tensor 'mask_decoder\.iou_token\.weight'"):
        Sam.load(str(copy.parent))
    weights.write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors in the subfolder"):
        Sam.load(str(copy.parent))


def test_decoder_epsilon_that_is_not_the_originals_is_said_and_kept(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [each.getMessage() for each in caplog.records if "layer_norm_eps" in each.msg]

    with caplog.at_level(logging.WARNING):
        Sam.load(str(copy.parent))
        assert not warnings()
        _rewrite(copy / "config.json", {"mask_decoder_config.layer_norm_eps": 1e-6})
        Sam.load(str(copy.parent))
        (warning,) = warnings()
    assert "1e-06, the original SAM and GLaMM 1e-05" in warning


def test_transformers_default_decoder_epsilon_is_still_not_the_originals() -> None:
    """The layout's docstring and the demo's configuration say so."""
    assert SamConfig().mask_decoder_config.layer_norm_eps == 1e-6
