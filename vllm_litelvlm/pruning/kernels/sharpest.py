""":func:`~vllm_litelvlm.pruning.sharpest.mix` as one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_litelvlm.pruning import kernels


def mix_in_one_launch(cosines: Tensor, own: Tensor, sharpness: float, part: float) -> Tensor:
    """What :func:`~vllm_litelvlm.pruning.sharpest.mix` gives.

    Args:
        cosines: float32 [pairs, 1 + tokens, patches].
        own: bool [pairs, tokens].
        sharpness: by what cosines and entropies are multiplied.
        part: of a text's tokens, those that count.

    Returns:
        float32 [pairs, patches].
    """
    pairs, rows, patches = cosines.shape
    mixed = torch.empty(pairs, patches, dtype=torch.float32, device=cosines.device)
    entropies = torch.empty(pairs, rows - 1, dtype=torch.float32, device=cosines.device)
    block, wide = triton.next_power_of_2(patches), triton.next_power_of_2(rows - 1)
    kernels.launch(
        _mix,
        (pairs,),
        cosines.contiguous(),
        own.contiguous().view(torch.uint8),
        entropies,
        mixed,
        rows - 1,
        patches,
        sharpness,
        part,
        block=block,
        wide=wide,
        num_warps=kernels.warps(max(block, wide * wide // 4)),
    )
    return mixed


@triton.jit(do_not_specialize=["tokens", "patches", "sharpness", "part"])
def _mix(
    cosines: tl.tensor,
    own: tl.tensor,
    entropies: tl.tensor,
    mixed: tl.tensor,
    tokens: int,
    patches: int,
    sharpness: float,
    part: float,
    block: tl.constexpr,
    wide: tl.constexpr,
) -> None:
    """One pair. Entropies go to memory, and come back together."""
    pair = tl.program_id(0).to(tl.int64)
    patch, token = tl.arange(0, block), tl.arange(0, wide)
    real, there = patch < patches, token < tokens
    cosines += pair * (tokens + 1) * patches
    entropies += pair * tokens
    for number in range(tokens):
        row = tl.load(cosines + (number + 1) * patches + patch, mask=real, other=float("inf"))
        logits = -sharpness * row
        logits = tl.where(real, logits - tl.max(logits, axis=0), -float("inf"))
        shares = tl.exp(logits)
        total = tl.sum(shares, axis=0)
        tilt = tl.sum(tl.where(real, shares * logits, 0.0), axis=0)
        tl.store(entropies + number, tl.log(total) - tilt / total)
    tl.debug_barrier()  # other threads read what one has stored
    counts = tl.load(own + pair * tokens + token, mask=there, other=0) != 0
    entropy = tl.load(entropies + token, mask=there, other=float("inf"))
    entropy = tl.where(counts, entropy, float("inf"))
    before = (entropy[None, :] < entropy[:, None]) | (
        (entropy[None, :] == entropy[:, None]) & (token[None, :] < token[:, None])
    )
    place = tl.sum(before.to(tl.int32), axis=1)
    most = tl.maximum(tl.floor(tl.sum(counts.to(tl.float32), axis=0) * part), 1.0)
    logits = tl.where(place < most, -sharpness * entropy, -float("inf"))
    weights = tl.exp(logits - tl.max(logits, axis=0))
    weights = weights / tl.sum(weights, axis=0)
    together = tl.zeros([block], dtype=tl.float32)
    for number in range(tokens):
        weight = tl.sum(tl.where(token == number, weights, 0.0), axis=0)
        if weight > 0:
            row = tl.load(cosines + (number + 1) * patches + patch, mask=real, other=0.0)
            together += weight * row
    whole = tl.load(cosines + patch, mask=real, other=0.0)
    tl.store(mixed + pair * patches + patch, (whole + together) / 2, mask=real)
