"""What a model sees of a picture: sizes, colours, patches, and boxes mapped back."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessorPil

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.vision.frame import check_shows_squares, padded, shown, window

MEAN = (0.48145466, 0.4578275, 0.40821073)
COLOUR = (122, 116, 104)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (7, 5), (5, 6), (300, 300), (1, 90)])
def test_padded_picture_is_in_the_middle_of_the_mean_colour(size: tuple[int, int]) -> None:
    picture = Image.effect_noise(size, 80).convert("RGB")
    square = padded(picture, MEAN)
    side = max(size)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    assert square.size == (side, side)
    assert square.crop((left, top, left + size[0], top + size[1])).tobytes() == picture.tobytes()
    around = np.array(square)
    around[top : top + size[1], left : left + size[0]] = COLOUR
    assert (around == COLOUR).all()


@pytest.mark.parametrize("form", ["RGBA", "L", "P", "array", "channels first"])
def test_picture_of_any_kind_is_padded(form: str) -> None:
    picture: Any = Image.new("RGB", (40, 20), (10, 200, 30))
    if form == "array":
        picture = np.array(picture)
    elif form == "channels first":
        picture = np.array(picture).transpose(2, 0, 1)
    else:
        picture = picture.convert(form)
    square = padded(picture, MEAN)
    assert (square.mode, square.size) == ("RGB", (40, 40))
    assert square.getpixel((0, 0)) == COLOUR


def test_long_and_thin_picture_takes_no_more_memory_than_others() -> None:
    square = padded(Image.new("RGB", (20_000, 2), (255, 0, 0)), MEAN)
    assert square.size == (4096, 4096)
    assert square.getpixel((0, 2047)) == (255, 0, 0)
    found = window((20_000, 2), 24)
    assert found is not None
    assert (found.top, found.bottom, found.left, found.right) == (11, 12, 0, 24)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((640, 480), (3, 21), (0, 24)),
        ((480, 640), (0, 24), (3, 21)),
        ((672, 336), (6, 18), (0, 24)),
        ((336, 28), (11, 13), (0, 24)),
        ((336, 30), (10, 14), (0, 24)),
        ((1000, 960), (0, 24), (0, 24)),
        ((500, 500), (0, 24), (0, 24)),
    ],
)
def test_patches_of_nothing_but_padding_are_outside_of_the_window(
    size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    found = window(size, 24)
    if (rows, columns) == ((0, 24), (0, 24)):
        assert found is None
        return
    assert found is not None
    assert ((found.top, found.bottom), (found.left, found.right)) == (rows, columns)
    # By pixels: which patches of the padded picture have another colour than padding.
    square = padded(Image.new("RGB", size, (255, 255, 255)), MEAN)
    small = np.array(square.resize((336, 336), Image.Resampling.BOX))
    other = (small != COLOUR).any(axis=2).reshape(24, 14, 24, 14).any(axis=(1, 3))
    numbers = set(np.flatnonzero(other).tolist())
    assert numbers <= set(found.numbers())
    assert found.patches == len(found.numbers()) == len(set(found.numbers()))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (900, 300), (333, 334), (200, 200)])
@pytest.mark.parametrize("frame", ["crop", "pad", "stretch", "stretch and crop", "smaller crop"])
def test_shares_of_what_the_processor_shows_are_mapped_back(
    size: tuple[int, int], frame: str
) -> None:
    """A rectangle is found in the processor's pixels where its box says."""
    middle = (size[0] / 2 - 20, size[1] / 2 - 40, size[0] / 2 + 60, size[1] / 2 + 20)
    picture = Image.new("RGB", size)
    ImageDraw.Draw(picture).rectangle(middle, fill=(255, 255, 255))
    resized = {"height": 336, "width": 336} if "stretch" in frame else {"shortest_edge": 336}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 384} if frame == "smaller crop" else resized,
        crop_size=336,
        do_center_crop=frame != "stretch",
        do_normalize=False,
    )
    seen = padded(picture, (0, 0, 0)) if frame == "pad" else picture
    pixels = np.asarray(processor(seen, return_tensors="np")["pixel_values"][0, 0])
    rows, columns = np.nonzero(pixels > 0.5)
    shares = (
        *(columns.min() / 336, rows.min() / 336),
        *((columns.max() + 1) / 336, (rows.max() + 1) / 336),
    )
    left, top, right, bottom = shown(size, "pad" if frame == "pad" else "crop", processor)
    found = [
        start + share * (end - start)
        for share, start, end in zip(shares, (left, top) * 2, (right, bottom) * 2, strict=True)
    ]
    assert found == pytest.approx(middle, abs=1.5 + max(size) / 336)


def test_processor_that_pads_by_itself_is_believed() -> None:
    class Padding:
        do_pad = True

    assert shown((400, 200), "crop", Padding()) == (0, -100, 400, 300)
    assert shown((400, 200), "crop") == (100, 0, 300, 200)


def test_padding_needs_a_processor_that_shows_all_of_a_square() -> None:
    check_shows_squares(CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=224))
    with pytest.raises(OptionsError, match=r'"pad", but .* crops squares too \(size .*384'):
        check_shows_squares(CLIPImageProcessorPil(size={"shortest_edge": 384}, crop_size=336))
