"""A picture on its way into SAM's square, and masks on their way back to the picture's own size."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in the colours that SAM sees; it is the same object where it is RGB."""
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def upright(picture: Image.Image) -> Image.Image:
    """An RGB picture as vLLM shows it: turned as its EXIF says, transparent parts on white."""
    turned = ImageOps.exif_transpose(picture)
    if turned.has_transparency_data:
        seen = turned.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(white, seen).convert("RGB")
    return as_rgb(turned)


def picture_key(picture: Image.Image) -> bytes:
    """A hash of mode, size and pixels of an RGB picture."""
    assert picture.mode == "RGB", "a palette would be no part of the pixels"
    digest = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height} ".encode())
    digest.update(picture.tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Fit:
    """How a picture lies in the square that SAM sees: enlarged or reduced, at the top left.

    As the original SAM (``ResizeLongestSide``, ``Sam.preprocess``, ``Sam.postprocess_masks``), but
    that a side has a pixel at the least: of pictures over 2048 times as long as wide the original
    makes one of no pixels, and fails.

    Args:
        side: of the square.
        height: of the picture.
        width: of the picture.
    """

    side: int
    height: int
    width: int

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width of the picture within the square."""
        scale = self.side / max(self.height, self.width)
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def pixels(self, picture: Image.Image, mean: Tensor, deviation: Tensor) -> Tensor:
        """What SAM's vision encoder takes, float32 [3, side, side].

        The picture is resized by Pillow's bilinear filter, which looks at every pixel where it
        makes smaller and gives whole levels, 0 to 255, as torchvision does for the original SAM
        (on tensors it gives other levels, by one, for a few in a thousand); it is normalised, and
        then padded with zeros.

        Args:
            picture: RGB, of this height and width.
            mean: float32 [3] on the scale 0 to 255.
            deviation: the same.
        """
        height, width = self.resized
        levels = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(levels).permute(2, 0, 1).float()  # [3, height, width]
        pixels = (pixels - mean[:, None, None]) / deviation[:, None, None]
        return F.pad(pixels, (0, self.side - width, 0, self.side - height))

    def masks(self, logits: Tensor) -> Tensor:
        """Masks of the picture's own size, bool [masks, height, width].

        Args:
            logits: of the whole square, float32 [masks, any, any].
        """
        height, width = self.resized
        square = _resize(logits, self.side, self.side)
        return _resize(square[:, :height, :width], self.height, self.width) > 0


def _resize(logits: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, without a look at more than four neighbours, as SAM resizes logits."""
    resized = F.interpolate(
        logits[:, None], (height, width), mode="bilinear", align_corners=False, antialias=False
    )
    return resized[:, 0]
