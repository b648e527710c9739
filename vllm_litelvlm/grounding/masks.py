"""The mask of one expression, and the formats it is answered in."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from vllm_litelvlm.errors import OptionsError

Format = Literal["rle", "png", "polygon"]
FORMATS: tuple[Format, ...] = get_args(Format)


class RunLengths(TypedDict):
    """COCO's compressed run lengths: ``size`` is height and width, ``counts`` printable ASCII."""

    size: list[int]
    counts: str


@dataclass(frozen=True, eq=False)
class Mask:
    """What one expression refers to in a picture; it may be nothing.

    Args:
        pixels: bool [height, width], of the picture's own size.
        score: SAM's own guess of the mask's IoU with what was meant. Nothing holds it to 0 and 1.
    """

    pixels: NDArray[np.bool_]
    score: float

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.pixels))

    @property
    def bbox(self) -> list[int]:
        """Left, top, width and height in pixels, as COCO's; zeros where the mask is empty."""
        rows, columns = (np.flatnonzero(self.pixels.any(axis)) for axis in (1, 0))
        if not rows.size:
            return [0, 0, 0, 0]
        left, top = int(columns[0]), int(rows[0])
        return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]

    def rle(self) -> RunLengths:
        """As pycocotools reads it."""
        encoded = coco_mask.encode(np.asfortranarray(self.pixels, dtype=np.uint8))
        return {"size": list(self.pixels.shape), "counts": encoded["counts"].decode("ascii")}

    def png(self) -> str:
        """A PNG of one bit a pixel, in base64; the mask is white."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode("ascii")

    def polygon(self) -> list[list[int]]:
        """As :func:`~vllm_litelvlm.grounding.polygons.polygons`; an empty mask has none."""
        # OpenCV comes with vLLM, not with this package, which is of use without it.
        from vllm_litelvlm.grounding.polygons import polygons

        return polygons(self.pixels)

    def segmentation(self, form: str) -> RunLengths | str | list[list[int]]:
        """In one of the :data:`FORMATS`; raises OptionsError for another."""
        check_format(form)
        ways: dict[str, Callable[[], RunLengths | str | list[list[int]]]] = {
            "rle": self.rle,
            "png": self.png,
            "polygon": self.polygon,
        }
        return ways[form]()


def check_format(form: object) -> None:
    """Raise OptionsError unless masks are answered in a format."""
    if form not in FORMATS:
        raise OptionsError(
            f"Masks are answered in the formats {', '.join(FORMATS)}; {form!r} is none of them. "
            "Ask for one of these."
        )
