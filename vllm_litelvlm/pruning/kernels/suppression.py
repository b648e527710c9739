"""The two loops of :mod:`~vllm_litelvlm.pruning.prunesid` as a kernel each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels
from vllm_litelvlm.pruning.prunesid import most_of_a_group


def line_up_in_one_launch(
    likeness: Tensor, total: Tensor, falling: Tensor, belongs: Tensor, groups: int, factor: float
) -> tuple[Tensor, Tensor]:
    """What :func:`~vllm_litelvlm.pruning.prunesid.line_up` gives.

    ``likeness``: cosines, float32 [images, patches, patches].
    """
    images, patches = belongs.shape
    turns = torch.empty(images, patches, dtype=torch.int32, device=belongs.device)
    counts = torch.empty(images, 2, groups, dtype=torch.int32, device=belongs.device)
    block = triton.next_power_of_2(patches)
    kernels.launch(
        _line_up,
        (images, groups),
        likeness.contiguous(),
        total.contiguous(),
        falling.contiguous(),
        belongs.contiguous(),
        turns,
        counts,
        patches,
        groups,
        factor,
        block=block,
        num_warps=kernels.warps(block),
    )
    return turns, counts


def share_out_in_one_launch(
    belongs: Tensor, turns: Tensor, counts: Tensor, budget: int, own: int
) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.prunesid.share_out` chooses."""
    images, patches = belongs.shape
    groups = counts.shape[-1]
    chosen = torch.empty(images, budget, dtype=torch.int64, device=belongs.device)
    block, wide = triton.next_power_of_2(patches), triton.next_power_of_2(groups)
    kernels.launch(
        _share_out,
        (images,),
        belongs.contiguous(),
        turns.contiguous(),
        counts.contiguous(),
        torch.empty_like(counts),
        chosen,
        patches,
        groups,
        budget,
        own,
        most_of_a_group(budget),
        block=block,
        wide=wide,
        num_warps=kernels.warps(max(block, wide)),
    )
    return chosen


@triton.jit(do_not_specialize=["patches", "groups", "factor"])
def _line_up(
    likeness: tl.tensor,
    total: tl.tensor,
    falling: tl.tensor,
    belongs: tl.tensor,
    turns: tl.tensor,
    counts: tl.tensor,
    patches: int,
    groups: int,
    factor: float,
    block: tl.constexpr,
) -> None:
    """One group of one image; a step a token that is not suppressed."""
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    likeness += image * patches * patches
    falling += image * patches
    place = tl.arange(0, block)
    patch = tl.load(falling + place, mask=place < patches, other=0)
    member = tl.load(belongs + image * patches + patch, mask=place < patches, other=-1) == group
    limit = (tl.load(total + image) - patches) * factor
    left, stays = member, place < 0
    newest = tl.min(tl.where(left, place, block), axis=0)
    while newest < block:
        row = tl.load(falling + newest) * patches
        cosine = tl.load(likeness + row + patch, mask=left, other=0.0)
        stays = stays | (place == newest)
        left = left & (place != newest) & ((cosine > limit) == 0)
        newest = tl.min(tl.where(left, place, block), axis=0)
    behind = member & (stays == 0)
    number, before = stays.to(tl.int32), behind.to(tl.int32)
    kept = tl.sum(number, axis=0)
    turn = tl.where(stays, tl.cumsum(number, axis=0), kept + tl.cumsum(before, axis=0)) - 1
    tl.store(turns + image * patches + patch, turn, mask=member)
    tl.store(counts + image * 2 * groups + group, kept + tl.sum(before, axis=0))
    tl.store(counts + (image * 2 + 1) * groups + group, kept)


@triton.jit(do_not_specialize=["patches", "groups", "budget", "own", "most_each"])
def _share_out(
    belongs: tl.tensor,
    turns: tl.tensor,
    counts: tl.tensor,
    shared: tl.tensor,
    chosen: tl.tensor,
    patches: int,
    groups: int,
    budget: int,
    own: int,
    most_each: int,
    block: tl.constexpr,
    wide: tl.constexpr,
) -> None:
    """One image: shares and where they start go to memory, as each patch reads its group's."""
    image = tl.program_id(0).to(tl.int64)
    counts += image * 2 * groups
    shared += image * 2 * groups
    chosen += image * budget
    group = tl.arange(0, wide)
    size = tl.load(counts + group, mask=group < groups, other=0)
    left = tl.load(counts + groups + group, mask=group < groups, other=0)
    least = tl.minimum(size, 1)
    most = tl.minimum(left, most_each)
    while tl.sum(most, axis=0) < budget:
        most = tl.minimum(most + 1, size)
    given = tl.sum(least, axis=0)
    rest = tl.maximum(0, budget - own - given)
    total = tl.sum(left, axis=0)
    end = tl.cumsum(left, axis=0) * rest
    begin = end - left * rest
    end = (2 * end + total - 1 + end // total % 2) // (2 * total)  # a half to the even number
    begin = (2 * begin + total - 1 + begin // total % 2) // (2 * total)
    share = tl.minimum(least + end - begin, most)
    missing = given + rest - tl.sum(share, axis=0)
    order = tl.where(group < groups, left, -1)
    while missing > 0:
        largest = tl.argmax(order, axis=0)  # the lower index of equals
        room = tl.sum(tl.where(group == largest, most - share, 0), axis=0)
        more = tl.minimum(room, missing)
        share += tl.where(group == largest, more, 0)
        order = tl.where(group == largest, -1, order)
        missing -= more
    tl.store(shared + group, share, mask=group < groups)
    tl.store(shared + groups + group, tl.cumsum(share, axis=0) - share, mask=group < groups)
    tl.debug_barrier()  # other threads read what this one has stored
    patch = tl.arange(0, block)
    real = patch < patches
    theirs = tl.load(belongs + image * patches + patch, mask=real, other=0)
    turn = tl.load(turns + image * patches + patch, mask=real, other=0)
    kept = real & (turn < tl.load(shared + theirs, mask=real, other=0))
    place = own + turn + tl.load(shared + groups + theirs, mask=real, other=0)
    tl.store(chosen + place, patch.to(tl.int64), mask=kept & (place < budget))
    tl.store(chosen + patch, tl.full([block], -1, tl.int64), mask=patch < own)
