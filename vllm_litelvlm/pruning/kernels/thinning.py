"""The rounds of :mod:`~vllm_litelvlm.pruning.vispruner` as one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels

#: Likenesses that are looked at together: every even token's with some odd ones.
_TILE = 8192


def thin_out_in_one_launch(likeness: Tensor, rest: Tensor, count: int, at_once: int) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.vispruner.thin_out_round_by_round` leaves.

    Args:
        likeness: cosines, float32 [images, patches, patches].
        rest: patches by falling attention, int64 [images, tokens], at least ``count``.
        count: how many to leave, from 1.
        at_once: how many go in one round.

    Returns:
        Patches in the order of the last round, int64 [images, count].
    """
    images, tokens = rest.shape
    left = torch.empty(images, count, dtype=torch.int64, device=rest.device)
    # A line-up for the round that is on and one for the next.
    lines = torch.empty(images, 2, tokens, dtype=torch.int32, device=rest.device)
    closest = torch.empty(images, tokens, dtype=torch.float32, device=rest.device)
    block = triton.next_power_of_2((tokens + 1) // 2)
    kernels.launch(
        _thin_out,
        (images,),
        likeness.contiguous(),
        rest.contiguous(),
        lines,
        closest,
        left,
        likeness.shape[1],
        tokens,
        count,
        at_once,
        block=block,
        columns=max(1, min(64, _TILE // block)),
        num_warps=kernels.warps(_TILE),
    )
    return left


@triton.jit(do_not_specialize=["patches", "tokens", "count", "at_once"])
def _thin_out(
    likeness: tl.tensor,
    rest: tl.tensor,
    lines: tl.tensor,
    closest: tl.tensor,
    left: tl.tensor,
    patches: int,
    tokens: int,
    count: int,
    at_once: int,
    block: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    """One image, whose line-up goes to memory after every round.

    In a line-up of n, place 2 i is the i-th even token and 2 i + 1 the i-th odd one. An even
    token's rank by falling likeness, the earlier of equals first, is how many come before it.
    """
    image = tl.program_id(0).to(tl.int64)
    one = tl.arange(0, block)
    likeness += image * patches * patches
    closest += image * tokens
    now, then = lines + image * 2 * tokens, lines + (image * 2 + 1) * tokens
    for start in range(0, tokens, block):
        real = start + one < tokens
        given = tl.load(rest + image * tokens + start + one, mask=real, other=0)
        tl.store(now + start + one, given.to(tl.int32), mask=real)
    tl.debug_barrier()  # here and below: other threads read what this one has stored
    size = tokens
    while size > count:
        odds = size // 2
        evens = size - odds
        dropped = tl.minimum(tl.minimum(at_once, size - count), evens)
        even = tl.load(now + 2 * one, mask=one < evens, other=0)
        best = tl.full([block], -float("inf"), dtype=tl.float32)
        for start in range(0, odds, columns):
            other = start + tl.arange(0, columns)
            odd = tl.load(now + 2 * other + 1, mask=other < odds, other=0)
            cosines = tl.load(
                likeness + even[:, None] * patches + odd[None, :],
                mask=(one < evens)[:, None] & (other < odds)[None, :],
                other=-float("inf"),
            )
            best = tl.maximum(best, tl.max(cosines, axis=1))
        tl.store(closest + one, best, mask=one < evens)
        tl.debug_barrier()
        rank = tl.zeros([block], dtype=tl.int32)
        for start in range(0, evens, columns):
            other = start + tl.arange(0, columns)
            real = (other < evens)[None, :]
            theirs = tl.load(closest + other, mask=other < evens, other=-float("inf"))[None, :]
            earlier = (theirs == best[:, None]) & (other[None, :] < one[:, None])
            rank += tl.sum(((theirs > best[:, None]) | earlier) & real, axis=1).to(tl.int32)
        stays = (one < evens) & (rank >= dropped)
        tl.store(then + rank - dropped, even, mask=stays)
        odd = tl.load(now + 2 * one + 1, mask=one < odds, other=0)
        tl.store(then + evens - dropped + one, odd, mask=one < odds)
        tl.debug_barrier()
        now, then = then, now
        size -= dropped
    for start in range(0, count, block):
        real = start + one < count
        kept = tl.load(now + start + one, mask=real, other=0)
        tl.store(left + image * count + start + one, kept.to(tl.int64), mask=real)
