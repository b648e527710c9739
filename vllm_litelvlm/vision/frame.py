"""What a model sees of a picture: its square is the picture's middle, or the picture and padding.

LLaVA-1.5 was trained, and is judged by its authors, on whole pictures padded to a square; the
processor of its published checkpoints resizes the shorter side and crops the middle.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.pruning.window import Window

Frame = Literal["crop", "pad"]
#: Left, top, right, bottom.
Edges = tuple[float, float, float, float]
#: Pixels of a side beyond which a picture is made smaller before it is padded: the square of a long
#: and thin one would take any amount of memory.
_LONGEST = 4096


def padded(picture: Any, mean: Sequence[float]) -> Image.Image:
    """A picture in the middle of a square of the colour ``mean``, RGB from 0 to 1.

    ``picture``: of Pillow, or an array of one, channels first or last. Sides of more than 4096
    pixels are made smaller first.
    """
    image = as_image(picture)
    if image.size != _bounded(image.size):
        image = image.resize(_bounded(image.size), Image.Resampling.BICUBIC)
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * part) for part in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def as_image(picture: Any) -> Image.Image:
    """An RGB image of Pillow."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    from transformers.image_transforms import to_pil_image

    image: Image.Image = to_pil_image(np.asarray(picture))
    return image.convert("RGB")


def size(picture: Any) -> tuple[int, int]:
    """Width and height of a picture, which is not decoded for it."""
    image = picture if isinstance(picture, Image.Image) else as_image(picture)
    return image.size


def window(size: tuple[int, int], side: int | Fraction) -> Window | None:
    """Patches that show something of a padded picture; None where all do.

    Args:
        size: width and height of the picture in pixels.
        side: of the square in patches; the tower leaves out what is no whole one.
    """
    size, grid = _bounded(size), int(side)
    longest = max(size)
    (left, right), (top, bottom) = (
        ((longest - length) // 2, (longest - length) // 2 + length) for length in size
    )
    found = Window(
        grid,
        top=top * side // longest,
        bottom=min(grid, -(-bottom * side // longest)),
        left=left * side // longest,
        right=min(grid, -(-right * side // longest)),
    )
    return None if found.patches == grid * grid else found


def shown(size: tuple[int, int], frame: Frame, processor: Any = None) -> Edges:
    """Which part of a picture the model's square is, in the picture's pixels.

    It reaches beyond the picture where that is padded.

    Args:
        size: width and height of the picture.
        frame: as it was asked for.
        processor: the model's image processor, in transformers' interface; None for one that
            resizes the shorter side to the square's and crops the middle, as LLaVA-1.5's.
    """
    width, height = size
    if frame == "pad" or getattr(processor, "do_pad", False):
        side = max(size)
        left, top = -((side - width) // 2), -((side - height) // 2)
        return float(left), float(top), float(left + side), float(top + side)
    across, down = _cropped(size, processor)
    left_edge, top_edge = (width - across) / 2, (height - down) / 2
    return left_edge, top_edge, left_edge + across, top_edge + down


def check_shows_squares(processor: Any) -> None:
    """Raise OptionsError for a processor of which the middle of a square is all that it shows."""
    if _cropped((100, 100), processor) != (100, 100):
        raise OptionsError(
            "litelvlm option 'frame' is \"pad\", but this model's image processor crops squares "
            f"too (size {dict(processor.size)}, crop_size {dict(processor.crop_size)}). Ask for "
            '"crop", or give the model a processor that resizes to what it crops.'
        )


def _cropped(size: tuple[int, int], processor: Any) -> tuple[float, float]:
    """Width and height of the middle that a processor shows, in the picture's pixels."""
    short = min(size)
    if processor is None:
        return short, short
    if not processor.do_center_crop:
        return size
    resized, crop = dict(processor.size), dict(processor.crop_size)
    if edge := resized.get("shortest_edge"):
        return crop["width"] * short / edge, crop["height"] * short / edge
    return (
        crop["width"] * size[0] / resized["width"],
        crop["height"] * size[1] / resized["height"],
    )


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    """A size of the same shape whose sides are no longer than allowed."""
    scale = min(1.0, _LONGEST / max(size))
    width, height = (max(1, round(scale * length)) for length in size)
    return width, height
