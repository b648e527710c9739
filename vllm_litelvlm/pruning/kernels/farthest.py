"""The loop of :mod:`~vllm_litelvlm.pruning.farthest` as one kernel; the only file with Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def choose_in_one_launch(weights: Tensor, gaps: Tensor, columns: int, count: int) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.farthest.choose_one_by_one` chooses, whatever the count.

    Args:
        weights: at least 1, float32 [images, patches].
        gaps: squared distance to the nearest patch chosen before, float32 [images, patches].
        columns: of the grid.
        count: how many to choose.

    Returns:
        Patches in the order of their choice, int64 [images, count].
    """
    images, patches = weights.shape
    chosen = torch.empty(images, count, dtype=torch.int64, device=weights.device)
    block = triton.next_power_of_2(patches)
    with torch.cuda.device_of(weights):
        _choose[(images,)](
            weights.contiguous(),
            gaps.contiguous(),
            chosen,
            patches,
            columns,
            count,
            block=block,
            num_warps=max(1, min(8, block // 256)),
        )
    return chosen


# Not specialised, so that every grid of the same block and every count share one compilation.
@triton.jit(do_not_specialize=["patches", "columns", "count"])
def _choose(
    weights: tl.tensor,
    gaps: tl.tensor,
    chosen: tl.tensor,
    patches: int,
    columns: int,
    count: int,
    block: tl.constexpr,
) -> None:
    """One image, whose weights and gaps stay in registers."""
    image = tl.program_id(0)
    patch = tl.arange(0, block)
    row, column = patch // columns, patch % columns
    real = patch < patches
    # Beyond the image scores are negative, and those of patches are not.
    weight = tl.load(weights + image * patches + patch, mask=real, other=-1.0)
    gap = tl.load(gaps + image * patches + patch, mask=real, other=1.0)
    for step in range(count):
        newest = tl.argmax(weight * gap, axis=0)  # the lower index of equals
        tl.store(chosen + image * count + step, newest.to(tl.int64))
        down, across = row - newest // columns, column - newest % columns
        gap = tl.minimum(gap, (down * down + across * across).to(tl.float32))
