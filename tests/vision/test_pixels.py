"""An image processor in two halves gives the pixels of the whole one, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPImageProcessorPil

from vllm_litelvlm.vision.pixels import ByteProcessor, PixelValues, looked_up

#: LLaVA-1.5's, in both forms that transformers has.
LLAVA = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
BACKENDS = [CLIPImageProcessor, CLIPImageProcessorPil]
both_backends = pytest.mark.parametrize("backend", BACKENDS)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").convert(mode)


def whole(processor: Any, image: Any) -> Tensor:
    return processor(images=[image], return_tensors="pt")["pixel_values"]


def split(processor: Any) -> ByteProcessor:
    found = ByteProcessor.of(processor)
    assert found is not None
    return found


@both_backends
@pytest.mark.parametrize(
    "size",
    [(336, 336), (640, 480), (480, 641), (1, 1), (50, 3), (337, 335), (1200, 400), (3000, 2000)],
)
def test_halves_give_the_pixels_of_the_whole(backend: Any, size: tuple[int, int]) -> None:
    processor = backend(**LLAVA)
    halves = split(processor)
    for mode in ("RGB", "L", "P", "RGBA", "1"):
        image = picture(*size, mode=mode)
        pixels = halves(image)
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (336, 336, 3))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            values = PixelValues(halves, dtype)(pixels[None])
            assert torch.equal(values, whole(processor, image).to(dtype))


@both_backends
@pytest.mark.parametrize(
    "options",
    [
        {**LLAVA, "size": {"height": 336, "width": 336}},
        {**LLAVA, "resample": Image.Resampling.BILINEAR},
        {**LLAVA, "do_center_crop": False, "size": {"height": 40, "width": 40}},
        {**LLAVA, "image_mean": [0.5, 0.1, 0.9], "image_std": [0.3, 1.0, 0.2]},
        {**LLAVA, "rescale_factor": 1 / 127.5},
    ],
    ids=str,
)
def test_options_of_a_processor_are_its_halves_too(backend: Any, options: dict[str, Any]) -> None:
    processor = backend(**options)
    halves, image = split(processor), picture(200, 123)
    values = PixelValues(halves, torch.float32)(halves(image)[None])
    assert torch.equal(values, whole(processor, image))


@both_backends
def test_formula_is_used_only_where_it_gives_the_processors_numbers(backend: Any) -> None:
    halves = split(backend(**LLAVA))
    by_formula = backend is CLIPImageProcessor  # which divides once; the other rescales before
    found = PixelValues(halves, torch.float32)
    assert found._by_formula == by_formula
    pixels = halves(picture(400, 400))[None]
    values = found(pixels)
    assert values.is_contiguous()
    assert torch.equal(values, looked_up(halves.values, pixels.permute(0, 3, 1, 2)))


def test_lookup_takes_every_channels_own_numbers() -> None:
    values = torch.arange(768.0).view(3, 256)
    pixels = torch.tensor([0, 7, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    found = looked_up(values, pixels)
    assert found.shape == (2, 3, 4, 5)
    assert found[1, :, 2, 3].tolist() == [0.0, 256 + 7, 512 + 255]


class Mirroring(CLIPImageProcessor):
    """Changes pixels where nobody who takes it apart would see it."""

    def _preprocess(self, *args: Any, **kwargs: Any) -> Any:
        made = super()._preprocess(*args, **kwargs)
        made["pixel_values"] = [one.flip(-1) for one in made["pixel_values"]]
        return made


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(**LLAVA, do_normalize=False),
        CLIPImageProcessor(**LLAVA, do_rescale=False),
        CLIPImageProcessor(**LLAVA, do_pad=True, pad_size={"height": 400, "width": 400}),
        Mirroring(**LLAVA),
        object(),
    ],
    ids=["not normalised", "not rescaled", "padded", "of its own kind", "no processor"],
)
def test_processor_that_cannot_be_split_is_not(processor: Any) -> None:
    assert ByteProcessor.of(processor) is None
