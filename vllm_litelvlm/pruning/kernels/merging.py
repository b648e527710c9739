"""The merging of :mod:`~vllm_litelvlm.pruning.tome` as one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels
from vllm_litelvlm.pruning.kernels.matching import match, measure, rank_evens

#: Columns of the hidden states that a program merges; every program matches all tokens.
_COLUMNS = 128
#: Tokens whose keys are compared with those of as many, and tokens that are merged at once.
_MATCHED, _MERGED = 64, 32


def merge_in_one_launch(
    hidden: Tensor, keys: Tensor, sizes: Tensor, places: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`~vllm_litelvlm.pruning.tome.merge_once` makes of hidden states.

    Args:
        hidden: [images, tokens, width], any float dtype.
        keys: float32 [images, tokens, head width].
        sizes: float32 [images, tokens].
        places: int64 [images, tokens].
        count: how many tokens to merge, at most the even ones but [CLS].

    Returns:
        Hidden states, sizes and places of the tokens that are left.
    """
    images, tokens, width = hidden.shape
    left = tokens - count
    merged = hidden.new_empty(images, left, width)
    new_sizes, new_places = sizes.new_empty(images, left), places.new_empty(images, left)
    evens = (tokens + 1) // 2
    parts, block = triton.cdiv(width, _COLUMNS), triton.next_power_of_2(evens)
    # Each program's own: the keys' lengths and every even token's best likeness; its partner, rank
    # and new place, and which tokens go.
    lengths = sizes.new_empty(images, parts, tokens + evens)
    notes = torch.empty(images, parts, 4, evens, dtype=torch.int32, device=hidden.device)
    kernels.launch(
        _merge,
        (images, parts),
        hidden.contiguous(),
        keys.contiguous(),
        sizes.contiguous(),
        places.contiguous(),
        lengths,
        notes,
        merged,
        new_sizes,
        new_places,
        tokens,
        count,
        width,
        keys.shape[2],
        block=block,
        key_block=max(16, triton.next_power_of_2(keys.shape[2])),
        columns=_COLUMNS,
        matched=_MATCHED,
        ranked=max(1, min(64, 8192 // block)),
        tile=_MERGED,
        num_warps=8,
    )
    return merged, new_sizes, new_places


@triton.jit
def _copy_those_that_stay(
    given: tl.tensor,
    sizes: tl.tensor,
    places: tl.tensor,
    notes: tl.tensor,
    merged: tl.tensor,
    new_sizes: tl.tensor,
    new_places: tl.tensor,
    evens: int,
    count: int,
    width: int,
    columns: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Even tokens that stay, in their order."""
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    for start in range(0, evens, tile):
        one = start + tl.arange(0, tile)
        real = one < evens
        stays = real & (tl.load(notes + one, mask=real, other=0) >= count)
        target = tl.load(notes + evens + one, mask=stays, other=0)
        mask = stays[:, None] & (column < width)[None, :]
        rows = tl.load(given + 2 * one[:, None] * width + column[None, :], mask=mask)
        tl.store(merged + target[:, None] * width + column[None, :], rows, mask=mask)
        if tl.program_id(1) == 0:
            tl.store(new_sizes + target, tl.load(sizes + 2 * one, mask=stays), mask=stays)
            tl.store(new_places + target, tl.load(places + 2 * one, mask=stays), mask=stays)


@triton.jit
def _join_odd_ones(
    given: tl.tensor,
    sizes: tl.tensor,
    places: tl.tensor,
    partners: tl.tensor,
    sources: tl.tensor,
    merged: tl.tensor,
    new_sizes: tl.tensor,
    new_places: tl.tensor,
    odds: int,
    count: int,
    width: int,
    columns: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Odd tokens as means of themselves and those that join them, weighted by size."""
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = (column < width)[None, :]
    for start in range(0, odds, tile):
        one = start + tl.arange(0, tile)
        real = one < odds
        size = tl.load(sizes + 2 * one + 1, mask=real, other=1.0)
        at = given + (2 * one[:, None] + 1) * width + column[None, :]
        rows = tl.load(at, mask=real[:, None] & inside, other=0.0)
        total = rows.to(tl.float32) * size[:, None]
        for first in range(0, count, tile):
            number = first + tl.arange(0, tile)
            counted = number < count
            source = tl.load(sources + number, mask=counted, other=0)
            partner = tl.load(partners + source, mask=counted, other=-1)
            added = tl.load(sizes + 2 * source, mask=counted, other=0.0)
            at = given + 2 * source[:, None] * width + column[None, :]
            joining = tl.load(at, mask=counted[:, None] & inside, other=0.0)
            # A row for each odd token, a column for each that goes.
            joins = (one[:, None] == partner[None, :]).to(tl.float32)
            weighted = joining.to(tl.float32) * added[:, None]
            total += tl.dot(joins, weighted, input_precision="ieee")
            size += tl.sum(joins * added[None, :], axis=1)
        mean = tl.div_rn(total, tl.broadcast_to(size[:, None], total.shape))
        at = merged + one[:, None] * width + column[None, :]
        tl.store(at, mean.to(merged.dtype.element_ty), mask=real[:, None] & inside)
        if tl.program_id(1) == 0:
            tl.store(new_sizes + one, size, mask=real)
            tl.store(new_places + one, tl.load(places + 2 * one + 1, mask=real), mask=real)


@triton.jit(do_not_specialize=["tokens", "count"])
def _merge(
    hidden: tl.tensor,
    keys: tl.tensor,
    sizes: tl.tensor,
    places: tl.tensor,
    lengths: tl.tensor,
    notes: tl.tensor,
    merged: tl.tensor,
    new_sizes: tl.tensor,
    new_places: tl.tensor,
    tokens: int,
    count: int,
    width: int,
    key_width: int,
    block: tl.constexpr,
    key_block: tl.constexpr,
    columns: tl.constexpr,
    matched: tl.constexpr,
    ranked: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Some columns of one image; the programs of an image match alike, each for itself."""
    image = tl.program_id(0).to(tl.int64)
    program = image * tl.num_programs(1) + tl.program_id(1)
    evens, odds, left = (tokens + 1) // 2, tokens // 2, tokens - count
    lengths += program * (tokens + evens)
    best = lengths + tokens
    partners = notes + program * 4 * evens
    notes = partners + evens
    hidden += image * tokens * width
    keys += image * tokens * key_width
    sizes += image * tokens
    places += image * tokens
    merged += image * left * width
    new_sizes += image * left
    new_places += image * left

    measure(keys, lengths, tokens, key_width, key_block)
    tl.debug_barrier()  # here and below: other threads read what this one has stored
    match(keys, lengths, best, partners, evens, odds, key_width, key_block, matched)
    tl.debug_barrier()
    rank_evens(best, notes, evens, count, block, ranked)
    tl.debug_barrier()
    _copy_those_that_stay(
        hidden, sizes, places, notes, merged, new_sizes, new_places,
        evens, count, width, columns, tile,
    )  # fmt: skip
    stayed = evens - count
    _join_odd_ones(
        hidden, sizes, places, partners, notes + 2 * evens,
        merged + stayed * width, new_sizes + stayed, new_places + stayed,
        odds, count, width, columns, tile,
    )  # fmt: skip
