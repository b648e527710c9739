"""What data sets consist of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Left, top, right, bottom in pixels of the image; right and bottom are just outside.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """An image, a question about it, and what is right.

    ``name`` is unique in its data set; ``kind`` groups samples in tables ("colour", "box", ...).
    ``prompt`` is the user's turn. ``texts`` are the referring expressions in it, which may guide
    the pruning in its stead; empty where it has none. Right is ``answer`` for short answers and
    ``box`` for "where"; ``mask``, bool [height, width], is the referred region where it is known.
    """

    name: str
    image: Image.Image
    prompt: str
    texts: tuple[str, ...]
    kind: str
    answer: str | None = None
    box: Box | None = None
    mask: NDArray[np.bool_] | None = None


class Dataset(Protocol):
    """A split of a data set: as many samples as it says, made or read when they are asked for."""

    name: str
    split: Literal["train", "val", "test", "testA", "testB"]

    def __len__(self) -> int:
        """How many samples there are."""

    def __iter__(self) -> Iterator[Sample]:
        """The samples in a fixed order; those about one image follow each other."""
