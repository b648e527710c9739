"""The vision towers of Qwen-VLs, and what they have to tell of their tokens."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_reduce

from vllm_litelvlm.plugin.kept import Shape
from vllm_litelvlm.plugin.models.qwen_front import Grid
from vllm_litelvlm.plugin.stopwatch import Section
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.vision.attention import FROM_ATTENTION, LastAttention, alone
from vllm_litelvlm.vision.pages import PageCache
from vllm_litelvlm.vision.slots import Rows


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
    def shapes(self) -> list[Shape]:
        """Those of the grids."""
        return [(grid.frames, grid.rows, grid.columns) for grid in self.grids]

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
        return self.pick(range(*items.indices(len(self.patches))))

    def pick(self, items: Sequence[int]) -> "Patches":
        """Some of them."""
        if list(items) == list(range(len(self.patches))):
            return self
        parts = self.pixels.split([tokens * self.merge**2 for tokens in self.tokens])
        return Patches(
            torch.cat([parts[item] for item in items]),
            [self.patches[item] for item in items],
            self.merge,
            [self.times[item] for item in items],
        )

    def groups(self) -> list[list[int]]:
        """The numbers of items whose pictures have the same grid, together."""
        alike = defaultdict[tuple[int, int], list[int]](list)
        for item, grid in enumerate(self.grids):
            alike[grid.rows, grid.columns].append(item)
        return list(alike.values())

    def alike(self, items: Sequence[int], parts: Sequence[Tensor]) -> Tensor:
        """Of tensors [tokens, ...] an item, those of some items of one grid, [frames, tokens, ...].

        ``frames`` are those of all these items.
        """
        return torch.cat([parts[one].unflatten(0, (self.grids[one].frames, -1)) for one in items])


class CachedTower:
    """vLLM's tower, which runs on what the cache lacks.

    Args:
        visual: vLLM's.
        order_of: where the tower has each token of an item, from the item's patches.
        cache: of features and of some signals.
    """

    def __init__(
        self,
        visual: Any,
        order_of: Callable[[Sequence[int]], Tensor | None],
        cache: PageCache,
    ) -> None:
        self._visual, self._order_of, self.cache = visual, order_of, cache

    def rows(
        self, media: Patches, keys: Sequence[bytes], wanted: frozenset[Signal], section: Section
    ) -> list[Rows]:
        """Features, and the wanted signals of the last attention, [tokens, ...] each, an item.

        Equal keys are looked at once. What the tower takes is no part of ``section``.
        """
        kept = frozenset(map(Signal, self.cache.names))
        usable = wanted <= kept
        first = {key: item for item, key in reversed(list(enumerate(keys)))}
        found: dict[bytes, Rows] = {}
        for key in first if usable else ():
            rows = self.cache.read(key)
            if rows is not None:
                found[key] = rows
        missing = [key for key in first if key not in found]
        if missing:
            some = media.pick([first[key] for key in missing])
            computed = self._run(some, wanted | (kept & FROM_ATTENTION), section)
            found.update(zip(missing, computed, strict=True))
            for key in missing if usable else ():
                self.cache.write(key, found[key])
        return [found[key] for key in keys]

    def _run(self, media: Patches, wanted: frozenset[Signal], section: Section) -> list[Rows]:
        orders = [self._order_of(one) for one in media.patches] if wanted else []
        heard = HeardAttention(self._visual.blocks[-1].attn, media, orders)
        with section.pause(), heard.listening() if wanted else nullcontext():
            features = self._visual(media.pixels, grid_thw=media.patches).split(media.tokens)
        rows: list[Rows] = [{Signal.FEATURES.value: one} for one in features]
        for items in media.groups() if wanted else ():
            frames = [media.grids[item].frames for item in items]
            for name, scores in heard.of(items).signals(wanted).items():
                for item, own in zip(items, scores.split(frames), strict=True):
                    rows[item][name.value] = own.flatten(0, 1)
        return rows


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
            query, key, value, rotated_query, rotated_key, heads, total if ranks > 1 else alone
        )

    def _of_each(self, patches: Tensor) -> list[Tensor]:
        """One [tokens, patches of a token, heads, head width] an item, in raster order."""
        cells = patches.unflatten(0, (-1, self._media.merge**2)).split(self._media.tokens)
        return [
            part if order is None else part.index_select(0, order)
            for part, order in zip(cells, self._orders, strict=True)
        ]
