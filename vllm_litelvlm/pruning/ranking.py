"""Orders of scores, with ties going to the lower patch index."""

import math

import torch
from torch import Tensor


def highest(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` highest of [images, patches], falling, int64 [images, count]."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :count]


def raster(indices: Tensor) -> Tensor:
    """The same patches in raster order."""
    return torch.sort(indices, dim=-1).values


def membership(indices: Tensor, patches: int) -> Tensor:
    """Whether each patch is among ``indices``, bool [images, patches]."""
    nobody = torch.zeros(len(indices), patches, dtype=torch.bool, device=indices.device)
    return nobody.scatter(1, indices, True)


def others(indices: Tensor, patches: int) -> Tensor:
    """The patches not among ``indices``, in raster order, int64 [images, patches - given]."""
    chosen = membership(indices, patches).to(torch.uint8)
    order = torch.sort(chosen, dim=-1, stable=True).indices
    return order[:, : patches - indices.shape[1]]


def ranks(scores: Tensor) -> Tensor:
    """Each entry's place in ascending order along the last dimension, ties by index."""
    order = torch.sort(scores, dim=-1, stable=True).indices
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def part(budget: int, share: float) -> int:
    """``budget * share``, half rounded up."""
    return math.floor(budget * share + 0.5)
