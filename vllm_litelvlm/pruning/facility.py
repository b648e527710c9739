"""Facility location: tokens chosen so that what is to be covered is like some of them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_litelvlm.pruning.greedy import choose_one_by_one
from vllm_litelvlm.pruning.kernels import kernels_take

#: Gains that a CPU computes together.
_AT_ONCE = 12

Floats = NDArray[np.float32]


def most_covering(likeness: Tensor, count: int, worth: Tensor | None = None) -> Tensor:
    """Choose again and again the token with the largest gain.

    Its gain is its worth times the sum, over all that is to be covered, of how much more like it
    that is than like any token chosen so far, and than nothing, which has likeness 0. Ties go to
    the lower index.

    Gains only fall. So of the gains that were computed when fewer tokens were chosen, those below
    the largest one that is up to date need not be computed again (Minoux, 1978).

    Args:
        likeness: of every token with all that is to be covered, float32 [images, tokens, covered].
        count: how many to choose.
        worth: at least 0, float32 [images, tokens]; all the same without.

    Returns:
        Tokens in the order of their choice, int64 [images, count].
    """
    if kernels_take(likeness):
        from vllm_litelvlm.pruning.kernels.facility import choose_in_one_launch

        return choose_in_one_launch(likeness, count, worth)
    if worth is None:
        worth = torch.ones_like(likeness[:, :, 0])
    if likeness.device.type != "cpu":
        return cover_step_by_step(likeness, count, worth)
    pairs = zip(likeness.numpy(), worth.numpy(), strict=True)
    return torch.tensor([_choose_lazily(*pair, count) for pair in pairs])


def cover_step_by_step(likeness: Tensor, count: int, worth: Tensor) -> Tensor:
    """The same with every gain at every step, of all images at once."""
    images = torch.arange(len(likeness), device=likeness.device)
    best = torch.zeros_like(likeness[:, 0])

    def gains(newest: Tensor | None) -> Tensor:
        if newest is not None:
            torch.maximum(best, likeness[images, newest], out=best)
        return worth * (likeness - best[:, None]).clamp(min=0).sum(dim=-1)

    return choose_one_by_one(gains, count)


def _choose_lazily(likeness: Floats, worth: Floats, count: int) -> list[int]:
    """Of one image; on so few numbers NumPy's calls are several times as fast as torch's."""
    best, left = np.zeros_like(likeness[0]), np.ones(len(worth), dtype=bool)

    def gains(tokens: NDArray[np.int64]) -> Floats:
        more = likeness[tokens]
        more -= best
        np.maximum(more, 0, out=more)
        summed: Floats = more.sum(axis=1)
        return np.where(left[tokens], worth[tokens] * summed, -np.inf)

    bounds, computed = gains(np.arange(len(worth))), np.zeros(len(worth), dtype=np.int64)
    few, chosen = min(_AT_ONCE, len(worth)), []
    for step in range(count):
        while computed[newest := int(bounds.argmax())] < step and bounds[newest] > 0:
            likely = bounds.argpartition(-few)[-few:]
            likely[0] = newest  # of more equal ones than that, any may be among them
            bounds[likely], computed[likely] = gains(likely), step
        chosen.append(newest)
        np.maximum(best, likeness[newest], out=best)
        left[newest], bounds[newest] = False, -np.inf
    return chosen
