"""What the slow re-derivations of methods share: plain lists in double precision."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import mul
from typing import TypeVar

import numpy as np

from tests.pruning.helpers import random_signals
from vllm_litelvlm.pruning.base import Signals

Vector = list[float]
Kept = TypeVar("Kept")

#: Float32 cannot be asked to tell apart scores that are nearer than this (relative to 1).
CLEAR = 2e-6


class Calls:
    """How close the closest decision was: the least lead of what was chosen over what was not."""

    def __init__(self) -> None:
        self.closest = math.inf

    def note(self, chosen: float, refused: float) -> None:
        self.closest = min(self.closest, chosen - refused)

    def cut(self, falling: Sequence[float], count: int) -> None:
        """The first ``count`` of ``falling`` were chosen, whatever their order."""
        if 0 < count < len(falling):
            self.note(falling[count - 1], falling[count])

    def order(self, falling: Sequence[float]) -> None:
        """Every place in ``falling`` matters."""
        for higher, lower in itertools.pairwise(falling):
            self.note(higher, lower)


def dot(left: Vector, right: Vector) -> float:
    return sum(map(mul, left, right))


def unit(vector: Vector) -> Vector:
    length = math.sqrt(dot(vector, vector)) or 1.0
    return [entry / length for entry in vector]


def cosines(left: Sequence[Vector], right: Sequence[Vector]) -> list[Vector]:
    """Of every vector on the left (rows) with every one on the right."""
    return (np.array([*map(unit, left)]) @ np.array([*map(unit, right)]).T).tolist()


def weighted_sum(vectors: Sequence[Vector], weights: Sequence[float], width: int) -> Vector:
    return [
        math.fsum(weight * vector[column] for vector, weight in zip(vectors, weights, strict=True))
        for column in range(width)
    ]


def add(left: Vector, right: Vector) -> Vector:
    return [a + b for a, b in zip(left, right, strict=True)]


@dataclass(frozen=True)
class Shape:
    """The size of a random case: a budget, and the number of texts of every image."""

    patches: int
    budget: int
    text_counts: tuple[int, ...]


def random_shape(seed: int, least_texts: int = 0, patches: Sequence[int] = ()) -> Shape:
    """One of many shapes; every tenth seed has as many patches as LLaVA-1.5."""
    generator = random.Random(seed)
    usual = 576 if seed % 10 == 9 else generator.choice([36, 49, 64, 81, 100, 144])
    size = generator.choice(list(patches)) if patches else usual
    images = 1 if size == 576 else generator.randint(1, 4)
    edge = [1, 2, 3, size - 1, size]
    budget = edge[seed] if seed < len(edge) else generator.randint(1, size)
    texts = tuple(generator.randint(least_texts, 4) for _ in range(images))
    return Shape(size, budget, texts)


def clear_case(
    seed: int,
    shape: Shape,
    width: int,
    derive: Callable[[Signals, int, Calls], Kept],
    make: Callable[..., Signals] = random_signals,
) -> tuple[Signals, list[Kept]]:
    """Random signals without a close call, and what ``derive`` makes of each image.

    Random scores are now and then so near to each other that float32 decides by its rounding;
    such draws are passed over.
    """
    for draw in range(50):
        signals = make(
            shape.text_counts, patches=shape.patches, seed=1000 * draw + seed, width=width
        )
        calls = Calls()
        kept = [derive(signals, image, calls) for image in range(signals.images)]
        if calls.closest > CLEAR:
            return signals, kept
    raise AssertionError(f"no clear case of {shape} in 50 draws")
