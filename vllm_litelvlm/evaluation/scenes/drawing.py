"""Painting: an object's colour and texture, and the background behind all."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vllm_litelvlm.evaluation.scenes.shapes import SUPERSAMPLING

#: Red, green, blue of each colour before it varies by object.
PALETTE = {
    "red": (212, 32, 36),
    "orange": (242, 132, 20),
    "yellow": (244, 218, 46),
    "green": (40, 158, 62),
    "blue": (40, 84, 214),
    "purple": (126, 48, 170),
    "pink": (246, 142, 192),
    "white": (238, 238, 238),
}
#: How much each channel of an object's colour may differ from the palette's.
VARIATION = 12

#: How dark stripes, dots and rims are, of 255.
SHADE, RIM = 135, 165

#: The side of the sheets that textures are cut from; larger than any object and the longest period.
_SHEET = 160


def paint(
    canvas: NDArray[np.uint8],
    covered: NDArray[np.uint8],
    colour: tuple[int, int, int],
    shade: NDArray[np.uint8],
) -> None:
    """Blend an object into ``canvas``, in place.

    ``canvas``: the part of the picture that the object encloses, uint8 [height, width, 3];
    ``covered``: how much of each pixel is the object's, uint8 [height, width]; ``shade``: how much
    darker than ``colour`` each pixel is, uint8 [height, width]. Whole-number arithmetic, so that
    every platform paints the same.
    """
    light = (255 - np.maximum(shade, _rim(covered))).astype(np.uint16)
    share = covered.astype(np.uint16)
    rest = 255 - share
    for channel, level in enumerate(colour):
        below = canvas[:, :, channel] * rest
        canvas[:, :, channel] = (light * level // 255 * share + below + 127) // 255


def _rim(covered: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A dark line inside the border, by which overlapping objects are told apart."""
    padded = np.pad(covered, 2)
    height, width = covered.shape
    inside = covered
    for down, right in ((0, 2), (4, 2), (2, 0), (2, 4)):
        inside = np.minimum(inside, padded[down : down + height, right : right + width])
    return ((covered - inside).astype(np.uint16) * RIM // 255).astype(np.uint8)


def texture(name: str, height: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """The shade of a surface, uint8 [height, width], with period, direction and offset at random.

    ``name`` is one of :data:`~vllm_litelvlm.evaluation.scenes.objects.TEXTURES`.
    """
    period, turned, down, right = (int(number) for number in random.integers(0, [4, 4, 16, 16]))
    if name == "plain":
        return np.zeros((height, width), np.uint8)
    sheet = _stripes(9 + period, turned) if name == "striped" else _dots(10 + period, turned % 2)
    return sheet[down : down + height, right : right + width]


@cache
def _stripes(period: int, turned: int) -> NDArray[np.uint8]:
    """Stripes as wide as their gaps, turned by a multiple of 45 degrees."""
    down, right = np.indices((_SHEET * SUPERSAMPLING, _SHEET * SUPERSAMPLING))
    along, length = ((right, 1.0), (right + down, 1.414214), (down, 1.0), (right - down, 1.414214))[
        turned
    ]
    dark = along % round(period * SUPERSAMPLING * length) * 2 < period * SUPERSAMPLING * length
    return _reduced(dark)


@cache
def _dots(period: int, turned: int) -> NDArray[np.uint8]:
    """Round dots on a square grid, upright or turned by 45 degrees."""
    down, right = np.indices((_SHEET * SUPERSAMPLING, _SHEET * SUPERSAMPLING))
    step, radius = period * SUPERSAMPLING, 0.31 * period * SUPERSAMPLING
    if turned:
        down, right = (down + right) * 5 // 7, (down - right) * 5 // 7
    dark = (down % step - step // 2) ** 2 + (right % step - step // 2) ** 2 < radius**2
    return _reduced(dark)


def _reduced(dark: NDArray[np.bool_]) -> NDArray[np.uint8]:
    sheet = Image.fromarray(dark.astype(np.uint8) * SHADE).reduce(SUPERSAMPLING)
    return np.asarray(sheet)
