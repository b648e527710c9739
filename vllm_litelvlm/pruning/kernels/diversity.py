"""The loop of :mod:`~vllm_litelvlm.pruning.divprune` as one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels


def choose_in_one_launch(likeness: Tensor, weights: Tensor, first: Tensor, count: int) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.divprune.most_diverse` chooses.

    Args:
        likeness: cosines, float32 [images, patches, patches]; the diagonal is not read.
        weights: float32 [images, patches].
        first: the first choice, int64 [images].
        count: how many to choose.

    Returns:
        Patches in the order of their choice, int64 [images, count].
    """
    images, patches, _ = likeness.shape
    chosen = torch.empty(images, count, dtype=torch.int64, device=likeness.device)
    block = triton.next_power_of_2(patches)
    kernels.launch(
        _choose,
        (images,),
        likeness.contiguous(),
        weights.contiguous(),
        first.contiguous(),
        chosen,
        patches,
        count,
        block=block,
        num_warps=kernels.warps(block),
    )
    return chosen


@triton.jit(do_not_specialize=["patches", "count"])
def _choose(
    likeness: tl.tensor,
    weights: tl.tensor,
    first: tl.tensor,
    chosen: tl.tensor,
    patches: int,
    count: int,
    block: tl.constexpr,
) -> None:
    """One image, whose distances to the nearest chosen patch stay in registers."""
    image = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, block)
    real = patch < patches
    weight = tl.load(weights + image * patches + patch, mask=real, other=0.0)
    gap = tl.full([block], float("inf"), dtype=tl.float32)
    left = real
    likeness += image * patches * patches
    newest = tl.load(first + image).to(tl.int32)
    for step in range(count):
        tl.store(chosen + image * count + step, newest.to(tl.int64))
        cosine = tl.load(likeness + newest * patches + patch, mask=real, other=0.0)
        gap = tl.minimum(gap, 1 - cosine)
        left = left & (patch != newest)
        score = tl.where(left, weight * gap, -float("inf"))
        newest = tl.argmax(score, axis=0)  # the lower index of equals
