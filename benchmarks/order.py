"""In what order a round measures."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def balanced(items: Sequence[Item], round: int) -> list[Item]:
    """The order of a round: over ``2 * len(items)`` rounds nobody has an advantage of it.

    Each item then has had every place twice, and has followed every other equally often, whose
    traces in caches and memory it may find (a Williams design); an even number of items needs
    only half the rounds.
    """
    count = len(items)
    zigzag = [place // 2 + 1 if place % 2 else -(place // 2) for place in range(count)]
    order = [items[(step + round) % count] for step in zigzag]
    return order[::-1] if round // count % 2 else order
