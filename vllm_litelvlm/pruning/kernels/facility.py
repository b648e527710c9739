"""The loop of :mod:`~vllm_litelvlm.pruning.facility` as one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels


def choose_in_one_launch(likeness: Tensor, count: int, worth: Tensor | None) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.facility.cover_step_by_step` chooses.

    Args:
        likeness: float32 [images, tokens, covered].
        count: how many to choose.
        worth: float32 [images, tokens]; all the same without.

    Returns:
        Tokens in the order of their choice, int64 [images, count].
    """
    images, tokens, covered = likeness.shape
    chosen = torch.empty(images, count, dtype=torch.int64, device=likeness.device)
    gains = likeness.clamp(min=0).sum(dim=-1)
    if worth is not None:
        gains = worth * gains
    block, wide = triton.next_power_of_2(tokens), triton.next_power_of_2(covered)
    kernels.launch(
        _choose,
        (images,),
        likeness.contiguous(),
        gains if worth is None else worth.contiguous(),
        gains,
        chosen,
        tokens,
        covered,
        count,
        has_worth=worth is not None,
        block=block,
        wide=wide,
        num_warps=kernels.warps(max(block, wide)),
    )
    return chosen


@triton.jit(do_not_specialize=["tokens", "covered", "count"])
def _choose(
    likeness: tl.tensor,
    worth: tl.tensor,
    gains: tl.tensor,
    chosen: tl.tensor,
    tokens: int,
    covered: int,
    count: int,
    has_worth: tl.constexpr,
    block: tl.constexpr,
    wide: tl.constexpr,
) -> None:
    """One image. A gain is computed again where it would be the largest, until it still is."""
    image = tl.program_id(0).to(tl.int64)
    token, place = tl.arange(0, block), tl.arange(0, wide)
    real, there = token < tokens, place < covered
    bound = tl.load(gains + image * tokens + token, mask=real, other=-float("inf"))
    bound = tl.where(bound == bound, bound, 0.0)  # or NaN would be chosen again and again
    likeness += image * tokens * covered
    best = tl.zeros([wide], dtype=tl.float32)
    for step in range(count):
        newest = tl.argmax(bound, axis=0)  # the lower index of equals
        settled = 0
        while settled == 0:
            row = tl.load(likeness + newest * covered + place, mask=there, other=0.0)
            gain = tl.sum(tl.maximum(row - best, 0.0), axis=0)
            if has_worth:
                gain *= tl.load(worth + image * tokens + newest)
            bound = tl.where(token == newest, tl.where(gain == gain, gain, 0.0), bound)
            largest = tl.argmax(bound, axis=0)
            settled = (largest == newest).to(tl.int32)
            newest = largest
        tl.store(chosen + image * count + step, newest.to(tl.int64))
        row = tl.load(likeness + newest * covered + place, mask=there, other=0.0)
        best = tl.maximum(best, row)
        bound = tl.where(token == newest, -float("inf"), bound)
