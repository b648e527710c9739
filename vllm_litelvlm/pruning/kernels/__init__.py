"""What goes step by step, as one Triton kernel each; a file here loads where its kernel runs.

A kernel chooses what the loop chooses that runs in its place on a CPU, but for sums in another
order: these may turn a choice between scores that are the same up to rounding.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def kernels_take(tensor: Tensor) -> bool:
    """Whether what is on the tensor's device goes to the kernels: a GPU where Triton is there."""
    return tensor.is_cuda and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def launch(
    kernel: Any, grid: Sequence[int], *arguments: Tensor | int | float, **constants: int | bool
) -> None:
    """Start a kernel; no other function does.

    Args:
        kernel: a function of ``triton.jit``.
        grid: how many programs, in each dimension.
        arguments: the first is a tensor, on the GPU to run on; all tensors are contiguous.
        constants: the kernel's own, and Triton's options. A product and a sum are rounded one
            after the other, as on a CPU.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device_of(first):
        kernel[tuple(grid)](*arguments, **constants, enable_fp_fusion=False)


def warps(block: int) -> int:
    """How many warps work on so many numbers, one for 256, at most 8."""
    return max(1, min(8, block // 256))
