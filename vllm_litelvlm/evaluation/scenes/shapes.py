"""The outlines of the shapes, and their rasters."""

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]

#: Shapes are drawn this many times larger and then averaged.
SUPERSAMPLING = 4


def coverage(shape: str, extent: int, tilt: int) -> NDArray[np.uint8]:
    """How much of each pixel a shape covers, uint8 [height, width] of 0 to 255.

    The larger side is ``extent`` pixels long; the array encloses the shape tightly. ``tilt`` is in
    whole degrees, clockwise.
    """
    polygons = _outline(shape, tilt)
    widest = max(max(point) for point in polygons[0])
    across, down = (max(point[axis] for point in polygons[0]) / widest for axis in (0, 1))
    width, height = max(1, round(extent * across)), max(1, round(extent * down))
    size = width * SUPERSAMPLING, height * SUPERSAMPLING
    scale = (extent * SUPERSAMPLING - 1) / widest
    large = Image.new("L", size)
    draw = ImageDraw.Draw(large)
    for number, polygon in enumerate(polygons):
        points = [(math.floor(x * scale + 0.5), math.floor(y * scale + 0.5)) for x, y in polygon]
        draw.polygon(points, fill=0 if number else 255)
    return np.asarray(large.reduce(SUPERSAMPLING))


@cache
def _outline(shape: str, tilt: int) -> list[list[Point]]:
    """The tilted polygon and its holes, moved so that the polygon's smallest x and y are 0.

    Sines are rounded, so that scenes do not hang on the last bit of a platform's.
    """
    cosine, sine = _round(math.cos(math.radians(tilt))), _round(math.sin(math.radians(tilt)))
    polygons = [
        [(x * cosine - y * sine, x * sine + y * cosine) for x, y in polygon]
        for polygon in _POLYGONS[shape]
    ]
    left, top = (min(point[axis] for point in polygons[0]) for axis in (0, 1))
    return [[(x - left, y - top) for x, y in polygon] for polygon in polygons]


def _round(value: float) -> float:
    return round(value, 6)


def _arc(
    start: float, end: float, radius: float = 1.0, centre: float = 0.0, points: int = 48
) -> Iterator[Point]:
    """Points of a circle around (centre, 0), from one angle to the other, in degrees."""
    for step in range(points + 1):
        angle = math.radians(start + (end - start) * step / points)
        yield _round(centre + radius * math.cos(angle)), _round(radius * math.sin(angle))


def _star() -> Iterator[Point]:
    for step in range(10):
        angle, radius = math.radians(36 * step - 90), 0.45 if step % 2 else 1.0
        yield _round(radius * math.cos(angle)), _round(radius * math.sin(angle))


def _heart() -> Iterator[Point]:
    for step in range(48):
        angle = math.radians(7.5 * step)
        waves = (13, -5, -2, -1)
        y = sum(wave * math.cos(number * angle) for number, wave in enumerate(waves, 1))
        yield _round(math.sin(angle) ** 3), _round(-y / 16)


def _cross(arm: float) -> list[Point]:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm), (arm, 1.0)]
    return quarter + [(-x, -y) for x, y in quarter]


#: Each shape as a polygon and holes in it; y points down.
_POLYGONS: dict[str, list[list[Point]]] = {
    "circle": [list(_arc(0, 360))],
    "square": [[(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]],
    "triangle": [[(-1.0, 0.8), (0.0, -1.0), (1.0, 0.8)]],
    "star": [list(_star())],
    "ring": [list(_arc(0, 360)), list(_arc(0, 360, radius=0.52))],
    "cross": [_cross(0.34)],
    "heart": [list(_heart())],
    "moon": [[*_arc(51.32, 308.68), *_arc(282.65, 77.35, radius=0.8, centre=0.45)]],
}
