"""The decompositions of :mod:`~vllm_litelvlm.pruning.prunesid`, for which no host has to wait."""

import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels

#: Numbers that are looked at together.
_ROWS_TILE, _PAIRS_TILE = 4096, 2048


def orthonormal_in_one_launch(rows: Tensor) -> Tensor:
    """Rows that span what those of :func:`~vllm_litelvlm.pruning.prunesid.orthonormal` do.

    One that depends on those before it becomes 0. ``rows``: float64 [images, rows, width].
    """
    images, count, width = rows.shape
    basis = rows.new_empty(rows.shape)
    block = triton.next_power_of_2(width)
    kernels.launch(
        _orthonormalise,
        (images,),
        rows.contiguous(),
        basis,
        count,
        width,
        block=block,
        tile=max(1, _ROWS_TILE // block),
        num_warps=kernels.warps(max(block, _ROWS_TILE)),
    )
    return basis


def axes_in_one_launch(squares: Tensor, nothing: float) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.prunesid.axes` gives, but for signs.

    ``squares``: symmetric, float64 [images, rows, rows]. ``nothing``: of the largest eigenvalue,
    what counts as 0.
    """
    images, count, _ = squares.shape
    turned, found = squares.new_empty(squares.shape), squares.new_empty(squares.shape)
    half = triton.next_power_of_2((count + 1) // 2)
    columns = min(2 * half, max(1, _PAIRS_TILE // half))
    kernels.launch(
        _turn_to_axes,
        (images,),
        squares.contiguous(),
        turned,
        squares.new_empty(images, count),
        found,
        count,
        nothing,
        half=half,
        columns=columns,
        num_warps=kernels.warps(half * columns),
    )
    return found


@triton.jit(do_not_specialize=["count", "width"])
def _orthonormalise(
    rows: tl.tensor,
    basis: tl.tensor,
    count: int,
    width: int,
    block: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """One image. Each row in turn is taken out of all behind it (modified Gram-Schmidt)."""
    image = tl.program_id(0).to(tl.int64)
    rows += image * count * width
    basis += image * count * width
    column = tl.arange(0, block)
    inside = column < width
    for start in range(0, count, tile):
        one = start + tl.arange(0, tile)
        at = one[:, None] * width + column[None, :]
        real = (one < count)[:, None] & inside[None, :]
        some = tl.load(rows + at, mask=real, other=0.0)
        some = tl.where(inside[None, :], some - tl.sum(some, axis=1)[:, None] / width, 0.0)
        length = tl.sqrt(tl.sum(some * some, axis=1))
        length = tl.where(length > 0, length, 1.0)  # so is NaN's
        tl.store(basis + at, some / length[:, None], mask=real)
    tl.debug_barrier()  # here and below: other threads read what this one has stored
    for number in range(count):
        row = tl.load(basis + number * width + column, mask=inside, other=0.0)
        length = tl.sqrt(tl.sum(row * row, axis=0))
        something = length > 1e-10
        row = tl.where(something, row, 0.0) / tl.where(something, length, 1.0)
        tl.debug_barrier()
        tl.store(basis + number * width + column, row, mask=inside)
        for start in range(number + 1, count, tile):
            one = start + tl.arange(0, tile)
            at = one[:, None] * width + column[None, :]
            real = (one < count)[:, None] & inside[None, :]
            some = tl.load(basis + at, mask=real, other=0.0)
            along = tl.sum(some * row[None, :], axis=1)
            tl.store(basis + at, some - along[:, None] * row[None, :], mask=real)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["count", "nothing"])
def _turn_to_axes(
    squares: tl.tensor,
    turned: tl.tensor,
    lengths: tl.tensor,
    found: tl.tensor,
    count: int,
    nothing: float,
    half: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    """One image, by one-sided Jacobi rotations.

    Pairs of rows are turned until they are at right angles, half of all rows with the other half
    at once. Of a symmetric matrix they are then its eigenvectors times their eigenvalues.
    """
    image = tl.program_id(0).to(tl.int64)
    squares += image * count * count
    turned += image * count * count
    found += image * count * count
    lengths += image * count
    pair, some = tl.arange(0, half), tl.arange(0, columns)
    for start in range(0, count * count, half * columns):
        at = start + tl.arange(0, half * columns)
        number = tl.load(squares + at, mask=at < count * count, other=0.0)
        tl.store(turned + at, tl.where(number == number, number, 0.0), mask=at < count * count)
    tl.debug_barrier()  # here and below: other threads read what this one has stored
    pairs = (count + 1) // 2
    others = 2 * pairs - 1
    sweep, moved = 0, 1
    while (moved > 0) & (sweep < 30):
        turns = tl.zeros([half], dtype=tl.int32)
        for step in range(others):
            # All meet all: the last row stays where it is, and the others go round.
            first = tl.where(pair == 0, others, (step + pair) % others)
            second = (step - pair + others) % others
            real = (pair < pairs) & (first < count) & (second < count)
            left, right = turned + first[:, None] * count, turned + second[:, None] * count
            ours = tl.zeros([half], dtype=tl.float64)
            theirs = tl.zeros([half], dtype=tl.float64)
            both = tl.zeros([half], dtype=tl.float64)
            for start in range(0, count, columns):
                column = (start + some)[None, :]
                there = real[:, None] & (column < count)
                one = tl.load(left + column, mask=there, other=0.0)
                other = tl.load(right + column, mask=there, other=0.0)
                ours += tl.sum(one * one, axis=1)
                theirs += tl.sum(other * other, axis=1)
                both += tl.sum(one * other, axis=1)
            turns_now = tl.abs(both) > 1e-14 * tl.sqrt(ours) * tl.sqrt(theirs)
            slope = (theirs - ours) / (2 * tl.where(turns_now, both, 1.0))
            tangent = 1 / (tl.abs(slope) + tl.sqrt(1 + slope * slope))
            tangent = tl.where(slope < 0, -tangent, tangent)
            tangent = tl.where(turns_now, tangent, 0.0)
            cosine = (1 / tl.sqrt(1 + tangent * tangent))[:, None]
            sine = cosine * tangent[:, None]
            for start in range(0, count, columns):
                column = (start + some)[None, :]
                there = real[:, None] & (column < count)
                one = tl.load(left + column, mask=there, other=0.0)
                other = tl.load(right + column, mask=there, other=0.0)
                tl.store(left + column, cosine * one - sine * other, mask=there)
                tl.store(right + column, sine * one + cosine * other, mask=there)
            turns += turns_now.to(tl.int32)
            tl.debug_barrier()
        moved = tl.sum(turns, axis=0)
        sweep += 1
    largest = tl.zeros([half], dtype=tl.float64)
    for start in range(0, count, half):
        row = start + pair
        square = tl.zeros([half], dtype=tl.float64)
        for begin in range(0, count, columns):
            column = (begin + some)[None, :]
            there = (row < count)[:, None] & (column < count)
            one = tl.load(turned + row[:, None] * count + column, mask=there, other=0.0)
            square += tl.sum(one * one, axis=1)
        tl.store(lengths + row, tl.sqrt(square), mask=row < count)
        largest = tl.maximum(largest, tl.sqrt(square))
    tl.debug_barrier()
    most = tl.max(largest, axis=0)
    for start in range(0, count, half):
        row = start + pair
        value = tl.load(lengths + row, mask=row < count, other=0.0)
        rank = tl.zeros([half], dtype=tl.int32)
        for begin in range(0, count, columns):
            other = begin + some
            theirs = tl.load(lengths + other, mask=other < count, other=-1.0)[None, :]
            earlier = (theirs == value[:, None]) & (other[None, :] < row[:, None])
            rank += tl.sum(((theirs > value[:, None]) | earlier).to(tl.int32), axis=1)
        something = value > nothing * most
        value = tl.where(something, value, 1.0)
        scale = tl.where(something, 1 / (value * tl.sqrt(value)), 0.0)
        for begin in range(0, count, columns):
            column = (begin + some)[None, :]
            there = (row < count)[:, None] & (column < count)
            one = tl.load(turned + row[:, None] * count + column, mask=there, other=0.0)
            tl.store(found + rank[:, None] * count + column, scale[:, None] * one, mask=there)
