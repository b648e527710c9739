"""Pixels as bytes: the two halves of an image processor's work, on either side of the engine.

Processors of CLIP resize and crop bytes, and then give every byte a number by itself (rescale and
normalise). Bytes are a quarter of float32 on their way, and what they stand for is looked up where
they are needed, bit for bit as the processor has it.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from vllm_litelvlm.vision.shared_memory import shared_pixels

_BYTES, _CHANNELS = 256, 3
#: Width and height of pictures on which a split processor is compared with the whole one.
_PROBES = ((640, 480), (90, 160), (7, 5))


class ByteProcessor:
    """The first half: an image processor of transformers up to where pixels are bytes.

    Its own steps are called one by one, without what its ``__call__`` checks and groups.
    """

    def __init__(self, processor: PilBackend | TorchvisionBackend) -> None:
        self._processor = processor
        #: What each byte of each channel becomes, float32 [3, 256].
        self.values = _values(processor)
        #: Of each channel in bytes, float32 [3, 1, 1].
        self.mean, self.std = (
            torch.tensor(part, dtype=torch.float32)[:, None, None]
            * (1.0 / processor.rescale_factor)
            for part in (processor.image_mean, processor.image_std)
        )

    @classmethod
    def of(cls, processor: Any) -> "ByteProcessor | None":
        """None for a processor that cannot be split so that no pixel changes."""
        steps = getattr(type(processor), "_preprocess", None)
        if steps not in (PilBackend._preprocess, TorchvisionBackend._preprocess):
            return None
        does = processor.do_convert_rgb and processor.do_rescale and processor.do_normalize
        if not does or processor.do_pad:
            return None
        split = cls(processor)
        return split if all(map(split._is_exact, _PROBES)) else None

    def __call__(self, picture: Image.Image) -> Tensor:
        """Bytes of a picture, uint8 [height, width, 3]; a tensor of its own."""
        processor = self._processor
        image = shared_pixels(picture) if isinstance(processor, TorchvisionBackend) else None
        if image is None:
            image = processor.process_image(picture, do_convert_rgb=processor.do_convert_rgb)
        if processor.do_resize:
            image = processor.resize(image=image, size=processor.size, resample=processor.resample)
        if processor.do_center_crop:
            image = processor.center_crop(image, processor.crop_size)
        planes = torch.as_tensor(image)
        pixels = planes.new_empty((*planes.shape[1:], _CHANNELS))  # as they mostly lie already
        for channel in range(_CHANNELS):
            pixels[..., channel] = planes[channel]
        return pixels

    def _is_exact(self, size: tuple[int, int]) -> bool:
        noise = np.random.default_rng(0).integers(0, _BYTES, (size[1], size[0], 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        whole = self._processor(images=[picture], return_tensors="pt")["pixel_values"]
        pixels = self(picture)[None].permute(0, 3, 1, 2)
        return pixels.dtype == torch.uint8 and torch.equal(looked_up(self.values, pixels), whole)


class PixelValues(nn.Module):
    """The second half: bytes to the numbers that the vision tower takes, on torch's device.

    Args:
        split: the first half.
        dtype: of the tower's input.
    """

    values: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, split: ByteProcessor, dtype: torch.dtype) -> None:
        super().__init__()
        device = torch.get_default_device()
        for name in ("values", "mean", "std"):
            self.register_buffer(name, getattr(split, name).to(device), persistent=False)
        self._dtype = dtype
        # Where the formula gives the very same numbers, it is faster than looking them up.
        every = torch.arange(_BYTES, device=device).expand(1, 3, 1, -1)
        self._by_formula = torch.equal(self._formula(every).view(3, -1), self.values)

    def forward(self, pixels: Tensor) -> Tensor:
        """Values of bytes, uint8 [images, height, width, 3].

        Returns:
            [images, 3, height, width] in the tower's dtype.
        """
        pixels = pixels.permute(0, 3, 1, 2)
        values = self._formula(pixels) if self._by_formula else looked_up(self.values, pixels)
        return values.to(self._dtype)

    def _formula(self, pixels: Tensor) -> Tensor:
        # A convolution sums in another order where channels lie together.
        numbers = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return numbers.sub_(self.mean).div_(self.std)


def looked_up(values: Tensor, pixels: Tensor) -> Tensor:
    """``values``, [3, 256], of bytes, uint8 [images, 3, height, width]."""
    channels = _BYTES * torch.arange(3, dtype=torch.int32, device=pixels.device)
    return values.flatten()[(pixels + channels[:, None, None]).contiguous()]


def _values(processor: Any) -> Tensor:
    """What a processor makes of every byte in every channel, float32 [3, 256]."""
    side = int(_BYTES**0.5)
    every = np.arange(_BYTES, dtype=np.uint8).reshape(side, side, 1).repeat(3, axis=2)
    made = processor(
        images=[Image.fromarray(every)],
        do_resize=False,
        do_center_crop=False,
        return_tensors="pt",
    )
    values: Tensor = made["pixel_values"].reshape(3, _BYTES)
    return values
