"""Pictures of patches on what the vision tower sees."""

import math
from collections.abc import Sequence
from itertools import accumulate, zip_longest

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

#: As in the paper's Figures 5 and 7.
RED, GREEN = (226, 34, 34), (22, 160, 60)
#: Of a square picture; others have about its area, and their captions its width at least.
_SIDE = 336
_CAPTION = 42
_GAP = 8


class Canvas:
    """What the tower sees, large enough to look at, and a pen that knows its patches.

    Args:
        seen: the pixels under the grid of patches.
        cell: pixels a side of a patch.
    """

    def __init__(self, seen: Image.Image, cell: int) -> None:
        rows, self._columns = seen.height // cell, seen.width // cell
        self._size = max(6, math.ceil(_SIDE / math.sqrt(rows * self._columns)))
        size = self._columns * self._size, rows * self._size
        self._seen = seen.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        self.picture = self._seen.copy()

    def fade(self, keep: Sequence[int] = ()) -> None:
        """Grey out all patches but those to keep."""
        grey = self._seen.convert("L").convert("RGB")
        self.picture = ImageEnhance.Brightness(grey).enhance(0.35)
        for index in keep:
            box = self._box(index)
            self.picture.paste(self._seen.crop(box), box[:2])

    def outline(self, indices: Sequence[int], colour: tuple[int, int, int]) -> None:
        """Draw a box around each patch."""
        pen = ImageDraw.Draw(self.picture)
        for index in indices:
            left, top, right, bottom = self._box(index)
            pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=2)

    def _box(self, index: int) -> tuple[int, int, int, int]:
        row, column = divmod(index, self._columns)
        left, top = column * self._size, row * self._size
        return left, top, left + self._size, top + self._size


def with_caption(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Write two lines at most under a picture, each on one line and shortened to fit."""
    width = max(picture.width, _SIDE)
    framed = Image.new("RGB", (width, picture.height + _CAPTION), "white")
    framed.paste(picture, (0, 0))
    pen = ImageDraw.Draw(framed)
    font = ImageFont.load_default(14)
    for number, line in enumerate(" ".join(text.split()) for text in lines):
        while line and pen.textlength(line, font=font) > width - 6:
            line = line.removesuffix("…")[:-1] + "…" if line != "…" else ""
        pen.text((3, picture.height + 3 + 18 * number), line, fill="black", font=font)
    return framed


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures row by row, in columns as wide as their widest."""
    columns = zip_longest(*rows)
    widths = [max(picture.width for picture in column if picture) for column in columns]
    lefts = list(accumulate((width + _GAP for width in widths), initial=_GAP))
    heights = [max(picture.height for picture in row) for row in rows]
    tops = list(accumulate((height + _GAP for height in heights), initial=_GAP))
    whole = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    for top, row in zip(tops, rows, strict=False):
        for left, picture in zip(lefts, row, strict=False):
            whole.paste(picture, (left, top))
    return whole
