"""The part of an image's grid of patches that shows a picture, where the rest is padding."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from vllm_litelvlm.pruning.base import CLS, Selection, Signal, Signals, to_device

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
    inside, places = confined(signals, window)
    numbers = places[: window.patches]
    chosen = choose(inside, None if base is None else base.index_select(1, numbers))
    return replace(chosen, indices=places.take(chosen.indices))


def confined(signals: Signals, window: Window) -> tuple[Signals, Tensor]:
    """The signals of the window's patches alone, and what the places in it are in the grid.

    Those of its patches come first, then of what follows the image, and that of [CLS] is the last,
    as its place in the window is -1; int64.
    """
    numbers = window.numbers()
    behind = range(signals.patches, signals.patches + window.patches)
    features = signals.values.get(Signal.FEATURES)
    own = 1 if features is None else features.shape[1] - signals.patches  # [CLS], if there is one
    in_features = [*range(own), *(number + own for number in numbers)]
    # One copy from the host.
    both = to_device([*in_features, *numbers, *behind, CLS], signals.device)
    in_features_on_device, places = both.tensor_split((len(in_features),))
    numbers_on_device = places[: window.patches]
    values: dict[Signal, Tensor] = {}
    for name, value in signals.values.items():
        if name is Signal.FEATURES:
            values[name] = value.index_select(1, in_features_on_device)
        else:
            values[name] = value.index_select(1 if name in _WIDE else -1, numbers_on_device)
    inside = replace(
        signals,
        patches=window.patches,
        values=values,
        tower=None,
        row_length=window.right - window.left,
    )
    return inside, places
