"""Pictures of patches on what the vision tower sees."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

#: As in the paper's Figures 5 and 7.
RED, GREEN = (226, 34, 34), (22, 160, 60)
_SIDE = 336
_CAPTION = 42
_GAP = 8


class Canvas:
    """What the tower sees, enlarged by a whole number, and a pen that knows its patches.

    Args:
        seen: the square of pixels that the grid covers.
        grid: patches a side.
    """

    def __init__(self, seen: Image.Image, grid: int) -> None:
        self._size = max(6, -(-_SIDE // grid))
        side = grid * self._size
        self._grid = grid
        self._seen = seen.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
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
        row, column = divmod(index, self._grid)
        left, top = column * self._size, row * self._size
        return left, top, left + self._size, top + self._size


def with_caption(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Write two lines at most under a picture, each on one line and shortened to its width."""
    framed = Image.new("RGB", (picture.width, picture.height + _CAPTION), "white")
    framed.paste(picture, (0, 0))
    pen = ImageDraw.Draw(framed)
    font = ImageFont.load_default(14)
    for number, line in enumerate(" ".join(text.split()) for text in lines):
        while line and pen.textlength(line, font=font) > picture.width - 6:
            line = line.removesuffix("…")[:-1] + "…" if line != "…" else ""
        pen.text((3, picture.height + 3 + 18 * number), line, fill="black", font=font)
    return framed


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size, row by row."""
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    whole = Image.new(
        "RGB", (_GAP + columns * (width + _GAP), _GAP + len(rows) * (height + _GAP)), "white"
    )
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            whole.paste(picture, (_GAP + column * (width + _GAP), _GAP + line * (height + _GAP)))
    return whole
