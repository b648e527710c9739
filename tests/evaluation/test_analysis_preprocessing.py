"""Masks take the way of their images."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)

from vllm_litelvlm.errors import CompatibilityError, OptionsError
from vllm_litelvlm.evaluation.analysis.preprocessing import (
    AnySizePreprocessor,
    Preprocessor,
    SquarePreprocessor,
)

SIDE, PATCH = 56, 14


def clip_preprocessor(side: int = SIDE, patch: int = PATCH) -> SquarePreprocessor:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return SquarePreprocessor(processor, side, patch)


def siglip_preprocessor(side: int = SIDE, patch: int = PATCH) -> SquarePreprocessor:
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    return SquarePreprocessor(processor, side, patch)


def masked(width: int, height: int, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = True
    return mask


def test_mask_of_a_wide_image_is_resized_and_cropped_as_clip_does() -> None:
    # 224 x 112 becomes 112 x 56; the crop is its columns 28 to 84, so 56 to 168 before.
    mask = masked(224, 112, (56 + 28, 28, 56 + 84, 84))
    found = clip_preprocessor().referred(Image.new("RGB", (224, 112)), mask)
    expected = np.zeros((4, 4), np.bool_)
    expected[1:3, 1:3] = True
    assert found.reshape(4, 4).tolist() == expected.tolist()


def test_mask_outside_the_crop_refers_to_nothing() -> None:
    mask = masked(224, 112, (0, 0, 40, 112))
    assert not clip_preprocessor().referred(Image.new("RGB", (224, 112)), mask).any()
    assert siglip_preprocessor().referred(Image.new("RGB", (224, 112)), mask).any()


def test_mask_of_a_tall_image_is_squeezed_as_siglip_does() -> None:
    mask = masked(56, 224, (14, 56, 28, 112))
    found = siglip_preprocessor().referred(Image.new("RGB", (56, 224)), mask)
    assert found.nonzero()[:, 0].tolist() == [1 * 4 + 1]


@pytest.mark.parametrize(("columns", "counts"), [(7, False), (8, True)])
def test_patch_is_referred_to_when_more_than_half_of_it_is_covered(
    columns: int, counts: bool
) -> None:
    mask = masked(SIDE, SIDE, (14, 0, 14 + columns, 14))
    found = clip_preprocessor().referred(Image.new("RGB", (SIDE, SIDE)), mask)
    assert found.nonzero()[:, 0].tolist() == ([1] if counts else [])


def torchvision_preprocessor() -> SquarePreprocessor:
    pytest.importorskip("torchvision")
    sizes = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=sizes)
    return SquarePreprocessor(processor, SIDE, PATCH)


#: From 4 to 40 cells of 2 x 2 patches; pixels stay from 0 to 1.
QWEN = {
    "size": {"shortest_edge": 4 * 28**2, "longest_edge": 40 * 28**2},
    "patch_size": PATCH,
    "merge_size": 2,
    "image_mean": [0.0] * 3,
    "image_std": [1.0] * 3,
}


def qwen_preprocessor() -> AnySizePreprocessor:
    return AnySizePreprocessor(Qwen2VLImageProcessorPil(**QWEN), PATCH, 2)


def torchvision_qwen_preprocessor() -> AnySizePreprocessor:
    pytest.importorskip("torchvision")
    return AnySizePreprocessor(Qwen2VLImageProcessor(**QWEN), PATCH, 2)


@pytest.mark.parametrize(
    "build",
    [
        clip_preprocessor,
        siglip_preprocessor,
        torchvision_preprocessor,
        qwen_preprocessor,
        torchvision_qwen_preprocessor,
    ],
)
@pytest.mark.parametrize("size", [(301, 187), (90, 140), (56, 56)])
def test_mask_lies_where_the_tower_sees_the_object(
    build: Callable[[], Preprocessor], size: tuple[int, int]
) -> None:
    """The object is bright on black; what the tower sees of it is measured in its own pixels."""
    preprocessor = build()
    width, height = size
    mask = masked(width, height, (width // 3, height // 4, 2 * width // 3, 3 * height // 4))
    image = Image.fromarray(np.where(mask[:, :, None], 255, 0).astype(np.uint8).repeat(3, axis=2))
    bright = np.asarray(preprocessor.seen(image)).mean(axis=2) / 255
    cell = preprocessor.cell
    shares = preprocessor.coverage(mask).tolist()
    assert len(shares) * cell**2 == bright.size
    for index, share in enumerate(shares):
        row, column = divmod(index, bright.shape[1] // cell)
        tile = bright[cell * row : cell * (row + 1), cell * column : cell * (column + 1)]
        assert share == pytest.approx(tile.mean(), abs=0.03)


@pytest.mark.parametrize("build", [qwen_preprocessor, torchvision_qwen_preprocessor])
@pytest.mark.parametrize(("size", "grid"), [((301, 187), (4, 8)), ((90, 140), (5, 3))])
def test_tokens_of_an_image_of_any_size_lie_in_raster_order(
    build: Callable[[], AnySizePreprocessor], size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """The picture is resized as a whole, and a token's patches follow each other."""
    preprocessor = build()
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(noise)
    rows, columns = grid
    resized = image.resize((28 * columns, 28 * rows), Image.Resampling.BICUBIC)
    seen, pixels = preprocessor.seen(image), preprocessor.pixels(image)
    assert seen.size == resized.size
    assert np.abs(np.asarray(seen, np.int16) - np.asarray(resized, np.int16)).max() <= 1
    assert (pixels.rows, pixels.columns, preprocessor.cells) == (rows, columns, None)
    of_tokens = pixels.values.unflatten(0, (rows * columns, 4)).mean(dim=(1, 2))
    for index, value in enumerate(of_tokens.tolist()):
        row, column = divmod(index, columns)
        tile = resized.crop((28 * column, 28 * row, 28 * (column + 1), 28 * (row + 1)))
        assert value == pytest.approx(np.asarray(tile).mean() / 255, abs=2e-3)


def test_pixels_past_the_last_whole_patch_are_left_out() -> None:
    preprocessor = siglip_preprocessor(side=60)
    image = Image.new("RGB", (60, 60))
    assert preprocessor.seen(image).size == (56, 56)
    assert not preprocessor.referred(image, masked(60, 60, (56, 0, 60, 60))).any()
    assert preprocessor.pixels(image).values.shape == (3, 60, 60)


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(OptionsError, match=r"A mask of 40 x 30 does not fit .* expected 30 x 40"):
        clip_preprocessor().referred(Image.new("RGB", (40, 30)), np.ones((40, 30), np.bool_))


def test_processor_of_another_size_is_refused() -> None:
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    preprocessor = SquarePreprocessor(processor, 56, 14)
    with pytest.raises(CompatibilityError, match="gives 32 x 32 pixels; the vision tower reads 56"):
        preprocessor.pixels(Image.new("RGB", (40, 30)))


def test_processor_of_other_cells_is_refused() -> None:
    processor = Qwen2VLImageProcessorPil(**QWEN)
    with pytest.raises(CompatibilityError, match=r"cells of 2 x 2 patches of 14 .* 2 x 2 of 16\."):
        AnySizePreprocessor(processor, 16, 2)


def test_image_that_the_processor_refuses_is_told() -> None:
    with pytest.raises(OptionsError, match=r"refuses an image of 2 x 500 .* ratio must be smaller"):
        qwen_preprocessor().pixels(Image.new("RGB", (2, 500)))
