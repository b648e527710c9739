"""Polygons around the pixels of a mask, in COCO's form."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Corners = NDArray[np.int64]
#: Distances from holes to corners of an outline that are computed at the most.
_COMPARED = 10_000_000


def polygons(mask: NDArray[np.bool_]) -> list[list[int]]:
    """One polygon for each part of a mask, ``[x, y, x, y, ...]``, exact.

    Coordinates are COCO's: those of pixels' corners, (0, 0) the picture's. Filled by pycocotools
    (or by any filler that asks for pixels' centres) they are the mask again. Parts are pixels that
    touch by a side or a corner.

    COCO's form has no holes, so each is cut open: the polygon goes from a corner of its outline to
    the hole, around it the other way, and back the same way. Whatever the rule of filling, the
    hole stays empty; a renderer that draws outlines shows the cut as a line.

    Args:
        mask: bool [height, width].
    """
    # OpenCV's contours go through the centres of pixels inside. Of a mask of twice the size they
    # are the halves on both sides of every pixel corner, which round to it.
    twice = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    found, hierarchy = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_corners(contour) for contour in found]
    #: The outline around each hole, and of an outline a negative number.
    around = hierarchy[0, :, 3].tolist() if rings else []
    holes: dict[int, list[Corners]] = {
        number: [] for number, outline in enumerate(around) if outline < 0
    }
    for number, outline in enumerate(around):
        if outline >= 0:
            holes[outline].append(rings[number])
    return [_cut(rings[outline], own).ravel().tolist() for outline, own in holes.items()]


def _corners(contour: Any) -> Corners:
    """Corners of pixels, [corners, 2], of a contour in a mask of twice the size, [points, 1, 2]."""
    return _distinct((contour[:, 0].astype(np.int64) + 1) // 2)


def _distinct(ring: Corners) -> Corners:
    """Without corners that repeat the one before."""
    new: NDArray[np.bool_] = (ring != np.roll(ring, 1, axis=0)).any(axis=1)
    return ring[new]


def _cut(outline: Corners, holes: Sequence[Corners]) -> Corners:
    """One ring of an outline and its holes, each reached from a near corner of the outline."""
    # Every corner is looked at, or so many that noise takes no time either.
    step = 1 + len(outline) * len(holes) // _COMPARED
    reached: dict[int, list[Corners]] = {}
    for hole in holes:
        nearest = int(((outline[::step] - hole[0]) ** 2).sum(axis=1).argmin())
        reached.setdefault(nearest * step, []).append(hole)
    parts, done = [], 0
    for corner in sorted(reached):
        parts.append(outline[done:corner])
        for hole in reached[corner]:
            parts += [outline[corner : corner + 1], hole, hole[:1]]
        done = corner
    return _distinct(np.concatenate([*parts, outline[done:]]))
