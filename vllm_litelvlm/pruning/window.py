"""The part of an image's grid of patches that shows a picture, where the rest is padding."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import (
    Selection,
    Signal,
    Signals,
    to_device,
)

#: Rows of width numbers a patch, [images, patches, width]; others have one number a patch, last.
_WIDE = frozenset({Signal.KEYS, Signal.LAST_KEYS, Signal.PROJECTED})


@dataclass(frozen=True)
class Window:
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a square grid.

    ``grid`` is its side; ``bottom`` and ``right`` are just outside.
    """

    grid: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def patches(self) -> int:
        """How many patches it has."""
        return (self.bottom - self.top) * (self.right - self.left)

    def numbers(self) -> list[int]:
        """Its patches' numbers in the grid, rising."""
        columns = range(self.left, self.right)
        return [row * self.grid + one for row in range(self.top, self.bottom) for one in columns]


def through(
    window: Window | None,
    signals: Signals,
    base: Tensor | None,
    choose: Callable[[Signals, Tensor | None], Selection],
) -> Selection:
    """What ``choose`` selects where there are the window's patches alone, by the grid's numbers.

    Args:
        window: None for the whole grid.
        signals: of whole grids; a method inside the tower cannot be confined.
        base: membership in a layer below, bool [images, patches of the grid].
        choose: gets signals and base of the window.
    """
    if window is None:
        return choose(signals, base)
    numbers = to_device(window.numbers(), signals.device)
    inside = None if base is None else base.index_select(1, numbers)
    chosen = choose(confined(signals, window, numbers), inside)
    # [CLS] stays, and so does what follows the patches.
    behind = chosen.indices - window.patches + signals.patches
    places = numbers[chosen.indices.clamp(0, window.patches - 1)]
    places = torch.where(chosen.indices < window.patches, places, behind)
    return replace(chosen, indices=torch.where(chosen.indices < 0, chosen.indices, places))


def confined(signals: Signals, window: Window, numbers: Tensor) -> Signals:
    """The signals of the window's patches alone; ``numbers`` are those of the window, on device."""
    values: dict[Signal, Tensor] = {}
    for name, value in signals.values.items():
        if name is Signal.FEATURES:
            with_cls = torch.cat([numbers.new_zeros(1), numbers + 1])
            values[name] = value.index_select(1, with_cls)
        else:
            values[name] = value.index_select(1 if name in _WIDE else -1, numbers)
    return replace(
        signals,
        patches=window.patches,
        values=values,
        tower=None,
        row_length=window.right - window.left,
    )
