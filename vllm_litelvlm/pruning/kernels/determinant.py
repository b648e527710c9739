"""The loop of :mod:`~vllm_litelvlm.pruning.cdpruner` as one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels

#: Numbers of the factor that are read at once, some rows of it.
_TILE = 8192


def choose_in_one_launch(likeness: Tensor, relevance: Tensor, count: int, no_gain: float) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.cdpruner.most_volume` chooses.

    Args:
        likeness: cosines, float32 [images, patches, patches].
        relevance: float32 [images, patches].
        count: how many to choose.
        no_gain: the gain up to which nothing is left of the kernel.

    Returns:
        Patches in the order of their choice, int64 [images, count].
    """
    images, patches = relevance.shape
    chosen = torch.empty(images, count, dtype=torch.int64, device=relevance.device)
    factor = torch.empty(images, count, patches, dtype=torch.float32, device=relevance.device)
    block = triton.next_power_of_2(patches)
    kernels.launch(
        _choose,
        (images,),
        likeness.contiguous(),
        relevance.contiguous(),
        factor,
        chosen,
        patches,
        count,
        no_gain,
        block=block,
        rows=max(1, _TILE // block),
        num_warps=kernels.warps(max(block, _TILE)),
    )
    return chosen


@triton.jit(do_not_specialize=["patches", "count", "no_gain"])
def _choose(
    likeness: tl.tensor,
    relevance: tl.tensor,
    factor: tl.tensor,
    chosen: tl.tensor,
    patches: int,
    count: int,
    no_gain: float,
    block: tl.constexpr,
    rows: tl.constexpr,
) -> None:
    """One image. Rows of the factor go to memory, and come back at every later step."""
    image = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, block)
    real = patch < patches
    relevant = tl.load(relevance + image * patches + patch, mask=real, other=0.0)
    relevant = tl.where(relevant == relevant, relevant, 0.0)  # or padding would win over NaN
    gain = relevant * relevant
    left = real
    likeness += image * patches * patches
    factor += image * count * patches
    for step in range(count):
        key = tl.where(gain > no_gain, gain, relevant - 2)  # gains before leftovers
        newest = tl.argmax(tl.where(left, key, -float("inf")), axis=0)
        tl.store(chosen + image * count + step, newest.to(tl.int64))
        here = patch == newest
        left = left & (patch != newest)
        own = tl.sum(tl.where(here, gain, 0.0), axis=0)
        own_relevance = tl.sum(tl.where(here, relevant, 0.0), axis=0)
        shared = tl.zeros([block], dtype=tl.float32)
        for first in range(0, step, rows):
            number = first + tl.arange(0, rows)
            before = number < step
            of_newest = tl.load(factor + number * patches + newest, mask=before, other=0.0)
            tile = tl.load(
                factor + number[:, None] * patches + patch[None, :],
                mask=before[:, None] & real[None, :],
                other=0.0,
            )
            shared += tl.sum(of_newest[:, None] * tile, axis=0)
        cosine = tl.load(likeness + newest * patches + patch, mask=real, other=0.0)
        kernel = own_relevance * cosine * relevant
        row = tl.div_rn(kernel - shared, tl.sqrt_rn(tl.maximum(own, no_gain)))
        row = tl.where(own > no_gain, row, 0.0)
        gain = gain - row * row
        tl.store(factor + step * patches + patch, row, mask=real)
        tl.debug_barrier()  # other threads read what this one has stored
