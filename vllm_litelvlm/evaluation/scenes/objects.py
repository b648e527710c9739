"""What scenes consist of: objects with four attributes, and how they lie to each other."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_litelvlm.evaluation.samples import Box

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")

#: The values of each attribute of an object, in the order in which English puts adjectives.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "size": SIZES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "shape": SHAPES,
}

#: Each direction and the one against it.
OPPOSITE: Mapping[str, str] = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
}
DIRECTIONS = tuple(OPPOSITE)

#: Pixels by which objects must differ in place for a spatial word to be beyond doubt.
MARGIN = 20.0


@dataclass(frozen=True)
class SceneObject:
    """One object as it is seen.

    ``index`` is its place in the order of drawing, so that higher ones cover lower ones. ``extent``
    is the larger side of the whole object in pixels. ``box`` encloses its visible pixels, which
    are the share ``visible`` of all of its pixels.
    """

    index: int
    shape: str
    colour: str
    texture: str
    size: str
    extent: int
    box: Box
    visible: float

    def attribute(self, name: str) -> str:
        """The value of one of :data:`ATTRIBUTES`."""
        value: str = getattr(self, name)
        return value

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box, x and y in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def reach(self, direction: str) -> tuple[float, float]:
        """How far its centre and its outer edge lie in a direction, in pixels (more is farther)."""
        axis = 0 if direction in ("left", "right") else 1
        if direction in ("left", "above"):
            return -self.centre[axis], -self.box[axis]
        return self.centre[axis], self.box[axis + 2]


def lies(one: SceneObject, direction: str, other: SceneObject) -> bool | None:
    """Whether ``one`` lies to that side of ``other``; None where it is in doubt.

    True needs a gap of :data:`MARGIN` between the centres, and at least half as much gap as the
    centres differ across. False needs the same gap the other way round.
    """
    ahead = one.reach(direction)[0] - other.reach(direction)[0]
    across_axis = 1 if direction in ("left", "right") else 0
    across = abs(one.centre[across_axis] - other.centre[across_axis])
    if ahead <= -MARGIN:
        return False
    if ahead >= MARGIN and 2 * ahead >= across:
        return True
    return None
