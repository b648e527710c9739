"""The matching of the kernel in :mod:`~vllm_litelvlm.pruning.kernels.merging`.

Each function leaves its results in memory; before others read them, threads have to wait for each
other.
"""

import triton
import triton.language as tl


@triton.jit
def measure(
    keys: tl.tensor, lengths: tl.tensor, tokens: int, key_width: int, key_block: tl.constexpr
) -> None:
    """The length of every token's key."""
    column = tl.arange(0, key_block)
    for start in range(0, tokens, 32):
        one = start + tl.arange(0, 32)
        real = one < tokens
        at = keys + one[:, None] * key_width + column[None, :]
        rows = tl.load(at, mask=real[:, None] & (column < key_width)[None, :], other=0.0)
        tl.store(lengths + one, tl.sqrt_rn(tl.sum(rows * rows, axis=1)), mask=real)


@triton.jit
def match(
    keys: tl.tensor,
    lengths: tl.tensor,
    best: tl.tensor,
    partners: tl.tensor,
    evens: int,
    odds: int,
    key_width: int,
    key_block: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The most similar odd token of every even one, the first of equals; [CLS] has none."""
    for start in range(0, evens, tile):
        one = start + tl.arange(0, tile)
        real = one < evens
        length = tl.maximum(tl.load(lengths + 2 * one, mask=real, other=1.0), 1e-12)
        most = tl.full([tile], -float("inf"), dtype=tl.float32)
        partner = tl.zeros([tile], dtype=tl.int32)
        for first in range(0, odds, tile):
            other = first + tl.arange(0, tile)
            there = other < odds
            products = tl.zeros([tile, tile], dtype=tl.float32)
            for column in range(0, key_block, 16):
                part = column + tl.arange(0, 16)
                inside = (part < key_width)[None, :]
                even = tl.load(
                    keys + 2 * one[:, None] * key_width + part[None, :],
                    mask=real[:, None] & inside,
                    other=0.0,
                )
                odd = tl.load(
                    keys + (2 * other[:, None] + 1) * key_width + part[None, :],
                    mask=there[:, None] & inside,
                    other=0.0,
                )
                products += tl.dot(even, tl.trans(odd), input_precision="ieee")
            theirs = tl.maximum(tl.load(lengths + 2 * other + 1, mask=there, other=1.0), 1e-12)
            cosines = products / length[:, None] / theirs[None, :]
            cosines = tl.where(there[None, :], cosines, -float("inf"))
            here, place = tl.max(cosines, axis=1, return_indices=True)
            partner = tl.where(here > most, first + place.to(tl.int32), partner)
            most = tl.maximum(most, here)
        tl.store(best + one, tl.where(one == 0, -float("inf"), most), mask=real)
        tl.store(partners + one, partner, mask=real)


@triton.jit
def rank_evens(
    best: tl.tensor,
    notes: tl.tensor,
    evens: int,
    count: int,
    block: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Which even tokens go, by falling likeness, and the new places of those that stay.

    ``notes`` gets a row of ranks, one of new places, and one of the tokens that go.
    """
    one = tl.arange(0, block)
    real = one < evens
    own = tl.load(best + one, mask=real, other=-float("inf"))
    rank = tl.zeros([block], dtype=tl.int32)
    for start in range(0, evens, tile):
        other = start + tl.arange(0, tile)
        theirs = tl.load(best + other, mask=other < evens, other=-float("inf"))[None, :]
        earlier = (theirs == own[:, None]) & (other[None, :] < one[:, None])
        before = ((theirs > own[:, None]) | earlier) & (other < evens)[None, :]
        rank += tl.sum(before.to(tl.int32), axis=1)
    stays = real & (rank >= count)
    tl.store(notes + one, rank, mask=real)
    tl.store(notes + evens + one, tl.cumsum(stays.to(tl.int32), axis=0) - 1, mask=real)
    tl.store(notes + 2 * evens + rank, one, mask=real & (rank < count))
