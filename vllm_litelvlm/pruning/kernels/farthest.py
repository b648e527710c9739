"""The loop of :mod:`~vllm_litelvlm.pruning.farthest` as one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels

#: Distances to patches of the base that are looked at together: every patch's to some.
_TILE = 8192


def choose_in_one_launch(
    weights: Tensor, base: Tensor | None, columns: int, count: int, beyond: float
) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.farthest.farthest_step_by_step` chooses.

    Args:
        weights: at least 1, float32 [images, patches].
        base: membership of patches chosen before, bool [images, patches].
        columns: of the grid.
        count: how many to choose.
        beyond: more than any squared distance.

    Returns:
        Patches in the order of their choice, int64 [images, count].
    """
    images, patches = weights.shape
    chosen = torch.empty(images, count, dtype=torch.int64, device=weights.device)
    block = triton.next_power_of_2(patches)
    kernels.launch(
        _choose,
        (images,),
        weights.contiguous(),
        chosen if base is None else base.contiguous().view(torch.uint8),
        chosen,
        patches,
        columns,
        count,
        beyond,
        has_base=base is not None,
        block=block,
        tile=max(1, min(64, _TILE // block)),
        num_warps=kernels.warps(block),
    )
    return chosen


# Not specialised, so that every grid of the same block and every count share one compilation.
@triton.jit(do_not_specialize=["patches", "columns", "count", "beyond"])
def _choose(
    weights: tl.tensor,
    base: tl.tensor,
    chosen: tl.tensor,
    patches: int,
    columns: int,
    count: int,
    beyond: float,
    has_base: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """One image, whose weights and squared distances to what is chosen stay in registers."""
    image = tl.program_id(0)
    patch = tl.arange(0, block)
    row, column = patch // columns, patch % columns
    real = patch < patches
    # Outside of the image scores are negative, and those of patches are not.
    weight = tl.load(weights + image * patches + patch, mask=real, other=-1.0)
    gap = tl.zeros([block], dtype=tl.float32) + beyond
    if has_base:
        for start in range(0, patches, tile):
            other = start + tl.arange(0, tile)
            member = tl.load(base + image * patches + other, mask=other < patches, other=0) != 0
            down = row[:, None] - (other // columns)[None, :]
            across = column[:, None] - (other % columns)[None, :]
            squares = (down * down + across * across).to(tl.float32)
            gap = tl.minimum(gap, tl.min(tl.where(member[None, :], squares, beyond), axis=1))
    for step in range(count):
        newest = tl.argmax(weight * gap, axis=0)  # the lower index of equals
        tl.store(chosen + image * count + step, newest.to(tl.int64))
        below, aside = row - newest // columns, column - newest % columns
        gap = tl.minimum(gap, (below * below + aside * aside).to(tl.float32))
