"""Which tokens were kept of the items seen last, for whoever asks for them afterwards.

Indices stay where they were computed: remembering waits for nothing, and only an answer reads them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vllm_litelvlm.plugin.plan import WorkOrder

#: Frames, rows and columns of an item's tokens.
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Kept:
    """What became of an item: an image, a layer of one, or a video.

    ``key`` is its picture's; ``tokens`` are those before pruning; ``shape`` is None where they are
    no grid. ``indices`` and ``guided`` as of :class:`~vllm_litelvlm.pruning.base.Selection`, on
    any device; None where all tokens stayed.
    """

    order: WorkOrder
    key: bytes
    tokens: int
    shape: Shape | None
    indices: Tensor | None = None
    guided: Tensor | None = None

    def told(self) -> dict[str, Any]:
        """In plain values, ``kept`` for the indices; waits for the device."""
        if self.indices is None or self.guided is None:
            frames = 1 if self.shape is None else self.shape[0]
            kept = [*range(self.tokens // frames)] * frames
            guided = [False] * self.tokens
        else:
            kept, guided = self.indices.tolist(), self.guided.tolist()
        return {
            "picture": self.key.hex(),
            "method": self.order.pruner.name,
            "layer": self.order.layer.value,
            "tokens": self.tokens,
            "shape": None if self.shape is None else list(self.shape),
            "kept": kept,
            "guided": guided,
        }


class KeptTokens:
    """By the name under which vLLM caches an item; the least recently encoded go first.

    Args:
        most: how many are remembered. 512 of 192 tokens each take 900 kB.
    """

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._items: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def remember(self, name: str, kept: Kept) -> None:
        """In the place of what the name stood for before."""
        self._items[name] = kept
        self._items.move_to_end(name)
        if len(self._items) > self._most:
            self._items.popitem(last=False)

    def told(self, names: Sequence[str]) -> list[dict[str, Any] | None]:
        """Of each name what :meth:`Kept.told` says; None of one that is not remembered."""
        found = [self._items.get(name) for name in names]
        return [None if one is None else one.told() for one in found]
