"""Images and masks as the vision tower sees them, by the checkpoint's own image processor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vllm_litelvlm.errors import CompatibilityError, OptionsError


class Preprocessor:
    """An image processor and the grid of patches that its pixels are cut into.

    Args:
        image_processor: of transformers.
        side: pixels a side of the square that the tower reads.
        patch: pixels a side of a patch. Pixels past the last whole patch are not in the grid.
    """

    def __init__(self, image_processor: Any, side: int, patch: int) -> None:
        self._processor = image_processor
        self._side = side
        self.patch = patch
        self.grid = side // patch

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """What the tower takes, [images, 3, side, side]."""
        return self._process([image.convert("RGB") for image in images])

    def seen(self, image: Image.Image) -> Image.Image:
        """The pixels that the grid covers, resized and cropped, RGB."""
        plain = self._process([image.convert("RGB")], do_rescale=False, do_normalize=False)[0]
        values = plain.float().clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(self._in_grid(values.numpy()))

    def coverage(self, mask: NDArray[np.bool_]) -> Tensor:
        """How much of each patch a mask covers, float32 [patches].

        The mask takes the image's way through the processor, as a black and white picture.
        Bilinear resizing averages, and unlike bicubic it does not overshoot at edges.
        """
        picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGB")
        plain = self._process(
            [picture], do_rescale=False, do_normalize=False, resample=Image.Resampling.BILINEAR
        )[0]
        white = self._in_grid(plain[0].float().numpy() / 255)
        tiles = white.reshape(self.grid, self.patch, self.grid, self.patch)
        return torch.from_numpy(tiles.mean(axis=(1, 3)).reshape(-1))

    def referred(self, image: Image.Image, mask: NDArray[np.bool_]) -> Tensor:
        """Which patches a mask of the image covers by more than half, bool [patches].

        Raises OptionsError for a mask that is not the image's.
        """
        if mask.shape != (image.height, image.width):
            raise OptionsError(
                f"A mask of {' x '.join(map(str, mask.shape))} does not fit its image; expected "
                f"{image.height} x {image.width} (height x width)."
            )
        return self.coverage(mask) > 0.5

    def _in_grid(self, pixels: NDArray[Any]) -> NDArray[Any]:
        covered = self.grid * self.patch
        return pixels[:covered, :covered]

    def _process(self, images: list[Image.Image], **options: Any) -> Tensor:
        values: Tensor = self._processor(images, return_tensors="pt", **options)["pixel_values"]
        if values.shape[-2:] != (self._side, self._side):
            raise CompatibilityError(
                f"The image processor gives {values.shape[-2]} x {values.shape[-1]} pixels; the "
                f"vision tower reads {self._side} x {self._side}. Use the checkpoint's own "
                "preprocessor_config.json."
            )
        return values
