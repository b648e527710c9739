"""A cache of tensor rows in memory that is allocated once."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import to_device

Rows = dict[str, Tensor]
#: Shape and dtype of one key's row.
Row = tuple[tuple[int, ...], torch.dtype]


def recall(
    keys: Sequence[Hashable], compute: Callable[[list[int]], Rows], cache: "SlotCache | None"
) -> Rows:
    """Rows of at least one key: equal keys are computed once, and cached ones not at all.

    Args:
        keys: what is asked for, in order.
        compute: from places in ``keys``, of distinct keys, to their rows; it may give more names
            than the cache keeps.
        cache: where to look, and to keep what was computed.

    Returns:
        name to one row a key; only names that every key has.
    """
    firsts: dict[Hashable, int] = {}
    for place, key in enumerate(keys):
        firsts.setdefault(key, place)
    slots = cache.find(list(firsts)) if cache is not None else [None] * len(firsts)
    found = [slot for slot in slots if slot is not None]
    missing = [key for key, slot in zip(firsts, slots, strict=True) if slot is None]
    parts = []
    if cache is not None and found:
        parts.append(cache.read(found))
    if missing:
        parts.append(compute([firsts[key] for key in missing]))
        if cache is not None:
            cache.write(missing, parts[-1])
    there = [key for key, slot in zip(firsts, slots, strict=True) if slot is not None]
    row = {key: number for number, key in enumerate([*there, *missing])}
    return _joined(parts, [row[key] for key in keys])


class SlotCache:
    """Rows by key, one slot each; the least recently used goes first.

    Rows are copied in and out, so the cache neither grows nor keeps other memory from being
    freed, and what it takes is there, to be measured, from the start. Which slot holds what is
    decided on the host; no call waits for the device. The memory lies on torch's current device.

    Args:
        slots: how many keys fit, from 1.
        rows: name to shape and dtype of one key's row.
    """

    def __init__(self, slots: int, rows: Mapping[str, Row]) -> None:
        self.slots, self.slot_bytes = slots, self.row_bytes(rows)
        self.names = tuple(rows)
        #: Name to the rows of all slots.
        self.memory = {
            name: torch.zeros(slots, *shape, dtype=dtype) for name, (shape, dtype) in rows.items()
        }
        self._places: OrderedDict[Hashable, int] = OrderedDict()
        #: Keys that were looked for, and those that were there.
        self.queries = self.hits = 0

    @staticmethod
    def row_bytes(rows: Mapping[str, Row]) -> int:
        """The size of one slot."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in rows.values())

    def __len__(self) -> int:
        return len(self._places)

    @property
    def bytes(self) -> int:
        """Memory of what is there."""
        return len(self) * self.slot_bytes

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def find(self, keys: Sequence[Hashable]) -> list[int | None]:
        """The slot of each key, or None; what is found counts as used."""
        found = []
        for key in keys:
            if key in self._places:
                self._places.move_to_end(key)
            found.append(self._places.get(key))
        self.queries += len(keys)
        self.hits += sum(slot is not None for slot in found)
        return found

    def read(self, slots: Sequence[int]) -> Rows:
        """Copies of rows, each with a leading dimension of the slots asked for."""
        return {
            name: memory.index_select(0, to_device(list(slots), memory.device))
            for name, memory in self.memory.items()
        }

    def write(self, keys: Sequence[Hashable], rows: Mapping[str, Tensor]) -> None:
        """Keep rows of new, distinct keys; of more than there are slots, the last ones."""
        first = max(0, len(keys) - self.slots)
        slots = [self._slot(key) for key in keys[first:]]
        for name, memory in self.memory.items():
            memory.index_copy_(0, to_device(slots, memory.device), rows[name][first:])

    def clear(self) -> None:
        """Forget every key, and what was counted."""
        self._places.clear()
        self.queries = self.hits = 0

    def _slot(self, key: Hashable) -> int:
        assert key not in self._places
        free = len(self._places)
        if free == self.slots:
            _, free = self._places.popitem(last=False)
        self._places[key] = free
        return free


def _joined(parts: Sequence[Rows], order: Sequence[int]) -> Rows:
    """The rows of all parts, one after the other, then in the order given."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    rows = {name: [part[name] for part in parts] for name in names}
    whole = {name: some[0] if len(some) == 1 else torch.cat(some) for name, some in rows.items()}
    some = next(iter(whole.values()))
    if list(order) == list(range(len(some))):
        return whole
    index = to_device(order, some.device)
    return {name: memory.index_select(0, index) for name, memory in whole.items()}
