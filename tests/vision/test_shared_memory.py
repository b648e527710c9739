"""Pixels of Pillow's images are read where they lie, and only where they lie as they should."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from vllm_litelvlm.vision.shared_memory import shared_pixels


def test_pixels_are_those_of_the_image_and_outlive_it() -> None:
    numbers = np.random.default_rng(2).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    image = Image.fromarray(numbers)
    pixels = shared_pixels(image)
    assert pixels is not None
    assert (pixels.shape, pixels.dtype) == ((4, 37, 53), torch.uint8)
    image.putpixel((4, 5), (1, 2, 3))  # the same memory, so it shows there
    assert pixels[:3, 5, 4].tolist() == [1, 2, 3]
    expected = torch.from_numpy(np.array(image))
    del image
    gc.collect()
    others = [Image.new("RGB", (53, 37), "red") for _ in range(8)]  # take what memory is free
    assert torch.equal(pixels[:3].permute(1, 2, 0), expected)
    del others


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_modes_are_left_to_pillow(mode: str) -> None:
    assert shared_pixels(Image.new(mode, (8, 8))) is None


def test_what_is_no_image_or_is_empty_or_lies_in_several_pieces_is_left_to_pillow() -> None:
    assert shared_pixels(np.zeros((8, 8, 3), np.uint8)) is None
    assert shared_pixels(Image.new("RGB", (3000, 2000))) is None
    assert shared_pixels(Image.new("RGB", (0, 4))) is None
