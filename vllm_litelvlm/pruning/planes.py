"""Where the patches of an image stand, whether they fill a grid or several."""

import numpy as np
import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import Signals, to_device

#: Between planes, in patches: beyond any distance that counts, and even.
_FAR = 4096


def points_and_regions(signals: Signals, side: int) -> tuple[Tensor, Tensor]:
    """Row, column and plane of every patch, and the number of the square that it lies in.

    Args:
        signals: of the images.
        side: of the squares that each plane is cut into, in patches.

    Returns:
        float32 [patches, 3], planes far apart, and float32 [patches, 1].
    """
    if signals.points is None:
        row, column = np.divmod(np.arange(signals.patches), signals.columns)
        region = row // side * (signals.columns // side + 1) + column // side
        table = np.stack([row, column, 0 * row, region], axis=1)
        points, regions = to_device(table, signals.device, torch.float32).split([3, 1], dim=1)
        return points, regions
    points = signals.points * to_device([1, 1, _FAR], signals.device, torch.float32)
    numbers = (points / side).floor() * to_device([_FAR, 1, _FAR], signals.device, torch.float32)
    return points, numbers.sum(dim=1, keepdim=True)


def distances(points: Tensor) -> Tensor:
    """Of every patch to every patch, in patches, float32 [patches, patches]."""
    far: Tensor = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return far
