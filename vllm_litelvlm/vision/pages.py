"""A cache of images of any size, in memory that is allocated once, page by page."""

import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import to_device
from vllm_litelvlm.vision.slots import Row, Rows

#: Tokens of a page. An image's last page is half empty on average.
PAGE = 64


@dataclass(frozen=True)
class _Kept:
    tokens: int
    pages: list[int]


class PageCache:
    """What is known of every token of an image, by the image's key; the oldest in use goes first.

    As for :class:`~vllm_litelvlm.vision.slots.SlotCache`, rows are copied in and out, what lies
    where is decided on the host, and no call waits for the device.

    Args:
        max_bytes: of all pages together.
        rows: name to shape and dtype of one token's row.
    """

    def __init__(self, max_bytes: int, rows: Mapping[str, Row]) -> None:
        self.names = frozenset(rows)
        self.page_bytes = PAGE * sum(
            math.prod(shape) * dtype.itemsize for shape, dtype in rows.values()
        )
        pages = max_bytes // self.page_bytes
        self._memory = {
            name: torch.zeros(pages, PAGE, *shape, dtype=dtype)
            for name, (shape, dtype) in rows.items()
        }
        self._free = list(range(pages))
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        #: Images that were looked for, and those that were there.
        self.queries = self.hits = 0

    @property
    def bytes(self) -> int:
        """Memory of what is there."""
        return self.page_bytes * sum(len(one.pages) for one in self._kept.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def read(self, key: Hashable) -> Rows | None:
        """Copies of an image's rows, [tokens, ...] each; None where it is not there."""
        self.queries += 1
        kept = self._kept.get(key)
        if kept is None:
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return {
            name: memory.index_select(0, to_device(kept.pages, memory.device))
            .flatten(0, 1)
            .narrow(0, 0, kept.tokens)
            for name, memory in self._memory.items()
        }

    def write(self, key: Hashable, rows: Mapping[str, Tensor]) -> None:
        """Keep the rows of an image, [tokens, ...] each, unless it takes more pages than there are.

        ``rows`` may have more names than the cache keeps.
        """
        tokens = len(next(iter(rows.values())))
        count = -(-tokens // PAGE)
        there = len(self._free) + sum(len(one.pages) for one in self._kept.values())
        if key in self._kept or count > there:
            return
        while len(self._free) < count:
            _, oldest = self._kept.popitem(last=False)
            self._free += oldest.pages
        pages, self._free = self._free[:count], self._free[count:]
        self._kept[key] = _Kept(tokens, pages)
        padding = count * PAGE - tokens
        for name, memory in self._memory.items():
            row = rows[name].to(memory.dtype)
            if padding:
                row = torch.cat([row, row.new_zeros(padding, *row.shape[1:])])
            memory.index_copy_(0, to_device(pages, memory.device), row.unflatten(0, (count, PAGE)))

    def clear(self) -> None:
        """Forget every image, and what was counted."""
        for kept in self._kept.values():
            self._free += kept.pages
        self._kept.clear()
        self.queries = self.hits = 0
