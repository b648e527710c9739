"""The vision towers of Qwen-VLs, and what they have to tell of their tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_reduce

from vllm_litelvlm.plugin.models.qwen_front import Grid
from vllm_litelvlm.vision.attention import LastAttention


@dataclass(frozen=True)
class Patches:
    """A step's images or videos: ``pixels`` [patches, channels of a patch].

    ``patches`` are frames, rows and columns of each in patches, of which ``merge`` a side are a
    visual token; ``times`` of each video's frames, in positions behind its first.
    """

    pixels: Tensor
    patches: Sequence[Sequence[int]]
    merge: int
    times: Sequence[tuple[int, ...]]

    @cached_property
    def grids(self) -> list[Grid]:
        """Of each item."""
        return [Grid.of(one, self.merge) for one in self.patches]

    @property
    def tokens(self) -> list[int]:
        """Visual tokens of each item, before pruning."""
        return [grid.tokens for grid in self.grids]

    @property
    def load(self) -> list[int]:
        """The same as :attr:`tokens`."""
        return self.tokens

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    def some(self, items: slice) -> "Patches":
        """A run of them."""
        ends = [0, *accumulate(tokens * self.merge**2 for tokens in self.tokens)]
        start, stop, _ = items.indices(len(self.patches))
        pixels = self.pixels[ends[start] : ends[stop]]
        return Patches(pixels, self.patches[items], self.merge, self.times[items])

    def alike(self, items: Sequence[int], parts: Sequence[Tensor]) -> Tensor:
        """Of tensors [tokens, ...] an item, those of some items of one grid, [frames, tokens, ...].

        ``frames`` are those of all these items.
        """
        return torch.cat([parts[one].unflatten(0, (self.grids[one].frames, -1)) for one in items])


class HeardAttention:
    """What a tower's last attention got while it ran on a batch.

    Args:
        attention: vLLM's, whose heads may lie on several ranks.
        media: the batch.
        orders: where the tower has each token of an item, in raster order; None where it is that.
    """

    def __init__(self, attention: Any, media: Patches, orders: Sequence[Tensor | None]) -> None:
        self._attention, self._media, self._orders = attention, media, orders
        self._parts: list[list[Tensor]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note it."""
        projected: list[Tensor] = []
        rotated: list[Tensor] = []

        def note_projected(_: Any, __: Any, output: tuple[Tensor, Any]) -> None:
            projected.append(output[0])

        def note_rotated(_: Any, __: Any, given: dict[str, Any]) -> None:
            rotated.extend((given["query"], given["key"]))

        handles = [
            self._attention.qkv.register_forward_hook(note_projected),
            self._attention.attn.register_forward_pre_hook(note_rotated, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        heads = self._attention.num_attention_heads_per_partition
        width = self._attention.hidden_size_per_attention_head
        parts = projected[0].squeeze(1).unflatten(-1, (3, heads, width)).unbind(1)
        self._parts = [self._of_each(one) for one in (*parts, *(one.squeeze(0) for one in rotated))]

    def of(self, items: Sequence[int]) -> LastAttention:
        """Of some items of one grid, frame by frame."""
        query, key, value, rotated_query, rotated_key = (
            self._media.alike(items, parts) for parts in self._parts
        )
        ranks = self._attention.tp_size
        heads = self._attention.num_attention_heads_per_partition * ranks
        total: Callable[[Tensor], Tensor] = tensor_model_parallel_all_reduce
        return LastAttention(
            query, key, value, rotated_query, rotated_key, heads, total if ranks > 1 else _alone
        )

    def _of_each(self, patches: Tensor) -> list[Tensor]:
        """One [tokens, patches of a token, heads, head width] an item, in raster order."""
        cells = patches.unflatten(0, (-1, self._media.merge**2)).split(self._media.tokens)
        return [
            part if order is None else part.index_select(0, order)
            for part, order in zip(cells, self._orders, strict=True)
        ]


def _alone(tensor: Tensor) -> Tensor:
    return tensor
