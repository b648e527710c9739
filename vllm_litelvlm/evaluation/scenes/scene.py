"""A scene: a picture, its objects, and which of its pixels each one has."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.scenes.background import background
from vllm_litelvlm.evaluation.scenes.drawing import PALETTE, VARIATION, paint, texture
from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES, SceneObject
from vllm_litelvlm.evaluation.scenes.shapes import coverage

#: The label of pixels and patches that are no object's.
BACKGROUND = -1

#: The least share of its pixels that an object keeps when others cover it.
LEAST_VISIBLE = 0.6

#: How many places are tried before an object is left out.
_PLACES = 20
#: How often an object takes after an earlier one, and then how often in each attribute.
_KINSHIP, _LIKENESS = 0.5, 0.5
_TILT = 12


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are drawn.

    ``side`` of the square picture in pixels; fewest and most ``objects``; smallest and largest
    extent of ``small`` and ``large`` objects in pixels. Where a size does not fit the picture,
    objects have the other one. Where the picture is full, it has fewer objects.

    Raises OptionsError for what cannot be drawn.
    """

    side: int = 336
    objects: tuple[int, int] = (3, 8)
    small: tuple[int, int] = (44, 60)
    large: tuple[int, int] = (84, 108)

    def __post_init__(self) -> None:
        fewest, most = self.objects
        if not 1 <= fewest <= most <= 8:
            raise OptionsError(f"objects={self.objects}: want 1 <= fewest <= most <= 8")
        if not 4 <= self.small[0] <= self.small[1] < self.large[0] <= self.large[1] <= 140:
            raise OptionsError(
                f"small={self.small}, large={self.large}: want 4 <= small < large <= 140"
            )
        if self.side < self.small[1]:
            raise OptionsError(
                f"side={self.side}: want at least the {self.small[1]} pixels of a small object"
            )

    def extents(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest extent of each size that fits the picture."""
        sizes = {"small": self.small, "large": self.large}
        return {name: extent for name, extent in sizes.items() if extent[1] <= self.side}


@dataclass(frozen=True, eq=False)
class Scene:
    """What was drawn from one seed.

    ``pixels`` uint8 [side, side, 3]; ``owners`` int8 [side, side]: the index of the object that is
    seen at each pixel, or :data:`BACKGROUND`. Neither may be written to.
    """

    seed: int
    options: SceneOptions
    pixels: NDArray[np.uint8]
    owners: NDArray[np.int8]
    objects: tuple[SceneObject, ...]

    @classmethod
    def make(cls, seed: int, options: SceneOptions | None = None) -> "Scene":
        """The scene of a seed, 0 or more: the same at every call and on every platform."""
        options = options or SceneOptions()
        easel = _Easel(options, np.random.Generator(np.random.PCG64(seed)))
        easel.fill()
        easel.canvas.setflags(write=False)
        easel.owners.setflags(write=False)
        return cls(seed, options, easel.canvas, easel.owners, easel.objects())

    @cached_property
    def image(self) -> Image.Image:
        """The picture, RGB."""
        return Image.fromarray(self.pixels)

    def mask(self, *indices: int) -> NDArray[np.bool_]:
        """The visible pixels of some objects together, bool [side, side]."""
        mask = np.zeros(self.owners.shape, np.bool_)
        for index in indices:
            mask |= self.owners == index
        return mask

    def patch_labels(self, patch: int = 14) -> NDArray[np.int8]:
        """Which object covers more than half of each patch, or :data:`BACKGROUND`.

        int8 [side / patch, side / patch]. Raises OptionsError where patches do not fill the
        picture.
        """
        side = self.options.side
        if side % patch:
            raise OptionsError(f"patch={patch}: want a divisor of the picture's side, {side}")
        count = side // patch
        labels = np.full((count, count), BACKGROUND, np.int8)
        for index in range(len(self.objects)):
            tiles = (self.owners == index).reshape(count, patch, count, patch)
            labels[2 * tiles.sum(axis=(1, 3)) > patch * patch] = index
        return labels


class _Easel:
    """A picture that is being drawn, one object over the others."""

    def __init__(self, options: SceneOptions, random: np.random.Generator) -> None:
        self.canvas = background(options.side, random)
        self.owners = np.full((options.side, options.side), BACKGROUND, np.int8)
        self._options = options
        self._random = random
        self._drawn: list[tuple[dict[str, str], int]] = []
        self._whole = np.zeros(options.objects[1], np.int64)
        self._seen = np.zeros(options.objects[1], np.int64)

    def fill(self) -> None:
        """Draw as many objects as the options and the room allow."""
        fewest, most = self._options.objects
        for _ in range(int(self._random.integers(fewest, most + 1))):
            self._add(self._attributes())

    def objects(self) -> tuple[SceneObject, ...]:
        """The objects that were drawn, with what is seen of them now."""
        found = []
        for index, (attributes, extent) in enumerate(self._drawn):
            mask = self.owners == index
            left, right = _ends(mask.any(axis=0))
            top, bottom = _ends(mask.any(axis=1))
            visible = float(self._seen[index] / self._whole[index])
            found.append(
                SceneObject(
                    index,
                    **attributes,
                    extent=extent,
                    box=(left, top, right, bottom),
                    visible=visible,
                )
            )
        return tuple(found)

    def _attributes(self) -> dict[str, str]:
        """Attributes at random; often some of an earlier object's, so that looking is needed."""
        random = self._random
        fitting = self._options.extents()
        values = {**ATTRIBUTES, "size": tuple(fitting)}
        chosen = {
            name: options[int(random.integers(len(options)))] for name, options in values.items()
        }
        if self._drawn and random.random() < _KINSHIP:
            model, _ = self._drawn[int(random.integers(len(self._drawn)))]
            chosen.update(
                {name: value for name, value in model.items() if random.random() < _LIKENESS}
            )
        return chosen

    def _add(self, attributes: dict[str, str]) -> None:
        """Draw one object where it hides no other one too much, or not at all."""
        random, side = self._random, self._options.side
        shortest, longest = self._options.extents()[attributes["size"]]
        extent = int(random.integers(shortest, longest + 1))
        tilt = int(random.integers(-_TILT, _TILT + 1))
        covered = coverage(attributes["shape"], extent, tilt)
        height, width = covered.shape
        own = covered > 127
        for top, left in random.integers(0, [side - height + 1, side - width + 1], (_PLACES, 2)):
            place = slice(top, top + height), slice(left, left + width)
            hidden = np.bincount(self.owners[place][own] + 1, minlength=len(self._seen) + 1)[1:]
            if np.all(self._seen - hidden >= LEAST_VISIBLE * self._whole):
                break
        else:
            return
        index = len(self._drawn)
        self._seen -= hidden
        self._seen[index] = self._whole[index] = np.count_nonzero(own)
        self.owners[place][own] = index
        changes = random.integers(-VARIATION, VARIATION + 1, 3)
        red, green, blue = np.clip(PALETTE[attributes["colour"]] + changes, 0, 255).tolist()
        shade = texture(attributes["texture"], height, width, random)
        paint(self.canvas[place], covered, (red, green, blue), shade)
        self._drawn.append((attributes, extent))


def _ends(occupied: NDArray[np.bool_]) -> tuple[float, float]:
    """The first occupied place and the one after the last."""
    return float(occupied.argmax()), float(len(occupied) - occupied[::-1].argmax())
