"""What is behind the objects: muted, textured and cluttered, and never like an object."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

#: Pixels between the points of the smooth noises, and how bright and how coloured each is.
_NOISES = ((84, 34, 12), (24, 22, 9), (8, 16, 5))
#: The clutter is drawn this many times smaller, which leaves it soft.
_SHRINK = 2


def background(side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A square picture without objects, uint8 [side, side, 3]."""
    small = -(-side // _SHRINK)
    grey = int(random.integers(85, 150))
    smooth = np.full((small, small, 3), grey, np.int16)
    for spacing, brightness, chroma in _NOISES:
        smooth += _noise(small, spacing // _SHRINK, brightness, chroma, random)
    picture = Image.fromarray(np.clip(smooth, 30, 190).astype(np.uint8))
    _clutter(picture, grey, random)
    large = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    grain = np.frombuffer(random.bytes(large.size), np.uint8).reshape(large.shape)
    return large + grain // 16


def _noise(
    side: int, spacing: int, brightness: int, chroma: int, random: np.random.Generator
) -> NDArray[np.int16]:
    """Noise around 0, smooth over ``spacing`` pixels, int16 [side, side, 3]."""
    count = side // spacing + 2
    points = random.integers(-brightness, brightness + 1, (count, count, 1))
    points = points + random.integers(-chroma, chroma + 1, (count, count, 3)) + 128
    grid = Image.fromarray(points.astype(np.uint8))
    box = (0.5, 0.5, 0.5 + side / spacing, 0.5 + side / spacing)
    grown = grid.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(grown).astype(np.int16) - 128


def _clutter(picture: Image.Image, grey: int, random: np.random.Generator) -> None:
    """Blobs, lines and specks in muted colours, as many as fit the picture's size."""
    draw = ImageDraw.Draw(picture)
    side = picture.width
    amount = max(1, side * side // 1400)
    corners, reaches = [0, 0], [side, side]
    places = random.integers([*corners, 3, 3], [*reaches, 14, 14], (amount, 4)).tolist()
    for (x, y, wide, high), colour in zip(places, _muted(grey, 22, amount, random), strict=True):
        draw.ellipse((x - wide, y - high, x + wide, y + high), fill=colour)
    places = random.integers([*corners, -60, -60], [*reaches, 61, 61], (amount, 4)).tolist()
    for (x, y, right, down), colour in zip(places, _muted(grey, 38, amount, random), strict=True):
        draw.line((x, y, x + right, y + down), fill=colour, width=1 + (x + y) % 2)
    places = random.integers(0, side, (4 * amount, 2)).tolist()
    for (x, y), colour in zip(places, _muted(grey, 45, 4 * amount, random), strict=True):
        draw.rectangle((x, y, x + 1, y + 1), fill=colour)


def _muted(
    grey: int, contrast: int, count: int, random: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Colours that are up to ``contrast`` lighter or darker than a grey."""
    colours = random.integers(-contrast, contrast + 1, (count, 1)) + grey
    colours = colours + random.integers(-12, 13, (count, 3))
    return [(red, green, blue) for red, green, blue in colours.tolist()]
