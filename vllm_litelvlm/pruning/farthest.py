"""Weighted farthest points: patches spread over the image plane, denser where the weight is."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from vllm_litelvlm.pruning.greedy import choose_one_by_one
from vllm_litelvlm.pruning.kernels import kernels_take

#: A power of two above the squared distance of any two patches of a plane of 1,000 a side.
_FAR_APART = float(2**21)


def farthest_points(
    weights: Tensor, columns: int, count: int, base: Tensor | None = None
) -> Tensor:
    """Choose again and again the patch with the highest weight times squared distance.

    The distance is that to the nearest patch chosen so far, in patches; the first choice, where
    there is no base, is the highest weight. Ties go to the lower patch index.

    A GPU makes all choices in one kernel; its products are those of the CPU, so that both choose
    the same patches.

    Args:
        weights: at least 1, float32 [images, patches]; patches in raster order.
        columns: of the grid, whose last row may be short.
        count: how many to choose; at most those outside of the base.
        base: membership of patches chosen before, bool [images, patches].

    Returns:
        Patches in the order of their choice, int64 [images, count].
    """
    if kernels_take(weights):
        from vllm_litelvlm.pruning.kernels.farthest import choose_in_one_launch

        return choose_in_one_launch(
            weights, base, columns, count, beyond(weights.shape[1], columns)
        )
    if base is None:  # all gaps are equal, and a power of two changes no product's order
        gaps = torch.full_like(weights, beyond(weights.shape[1], columns))
    else:
        gaps = gaps_to(base, columns)
    return farthest_step_by_step(weights, gaps, columns, count)


def farthest_in_planes(weights: Tensor, points: Tensor, count: int) -> Tensor:
    """Choose as :func:`farthest_points` does, of patches in several planes.

    Between planes there is no distance: to a patch of another one all are as far as to none, and
    each plane's first choice is its heaviest patch. A GPU runs these steps one by one, too.

    Args:
        weights: at least 1, float32 [images, patches].
        points: as :attr:`~vllm_litelvlm.pruning.base.Signals.points`, float32 [patches, 3].
        count: how many to choose.

    Returns:
        Patches in the order of their choice, int64 [images, count].
    """
    places, plane = points.split([2, 1], dim=1)
    gaps = torch.full_like(weights, _FAR_APART)

    def scores(newest: Tensor | None) -> Tensor:
        if newest is not None:
            squares = (places - places[newest][:, None]).square().sum(dim=-1)
            apart = plane[:, 0] != plane[newest]
            torch.minimum(gaps, squares.masked_fill(apart, _FAR_APART), out=gaps)
        return weights * gaps

    return choose_one_by_one(scores, count, excludes=True)


def farthest_step_by_step(weights: Tensor, gaps: Tensor, columns: int, count: int) -> Tensor:
    """One patch of every image a step.

    ``gaps``: squared distance to the nearest patch chosen before, float32 [images, patches].
    """
    distances = _distances(weights.shape[1], columns, weights.device)
    products, to_newest, gaps = torch.empty_like(gaps), torch.empty_like(gaps), gaps.clone()

    def scores(newest: Tensor | None) -> Tensor:
        if newest is not None:
            torch.index_select(distances, 0, newest, out=to_newest)
            torch.minimum(gaps, to_newest, out=gaps)
        return torch.mul(weights, gaps, out=products)

    # What is chosen has gap 0, and so a score below all others'.
    return choose_one_by_one(scores, count, excludes=True)


def gaps_to(base: Tensor, columns: int) -> Tensor:
    """Squared distance of every patch to the nearest of ``base``, float32 [images, patches].

    First within each row, then over rows. Without a base, more than any distance.
    """
    images, patches = base.shape
    rows = -(-patches // columns)
    grid = nn.functional.pad(base, (0, rows * columns - patches)).view(images, rows, 1, columns)
    outside = (~grid).float() * beyond(patches, columns)
    along = (outside + _squares(columns, base.device)).amin(dim=-1)
    down = along[:, None] + _squares(rows, base.device)[:, :, None]  # [images, to, from, columns]
    return down.amin(dim=2).flatten(1)[:, :patches].contiguous()


def beyond(patches: int, columns: int) -> float:
    """The least power of two above every squared distance."""
    rows = -(-patches // columns)
    return float(1 << ((rows - 1) ** 2 + (columns - 1) ** 2).bit_length())


@lru_cache(maxsize=4)
def _distances(patches: int, columns: int, device: torch.device) -> Tensor:
    """Between all patches, squared, float32 [patches, patches]: 1.3 MB for 576, 33 for 2880."""
    rows = -(-patches // columns)
    grid = _squares(rows, device)[:, None, :, None] + _squares(columns, device)[:, None, :]
    return grid.reshape(rows * columns, rows * columns)[:patches, :patches].contiguous()


def _squares(length: int, device: torch.device) -> Tensor:
    """Squared differences of places on a line, float32 [length, length]."""
    places = torch.arange(length, dtype=torch.float32, device=device)
    return (places[:, None] - places).square()
