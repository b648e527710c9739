"""What each patch shows, as a help to contrastive training: linear heads on hidden state -2.

Without them a small CLIP learns shape last and hardly. They are not part of the exported model.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vllm_litelvlm.demo.training.captions import attribute_codes
from vllm_litelvlm.evaluation.scenes.objects import ATTRIBUTES
from vllm_litelvlm.evaluation.scenes.scene import Scene

#: Pixels that count as 1 in the distances to an object's sides.
_REACH = 50.0
#: How much the parts of the loss count.
_SHARES = {"object": 1.0, "size": 0.5, "colour": 0.5, "texture": 0.5, "shape": 2.0, "sides": 1.0}
_COUNTS = {name: len(values) for name, values in ATTRIBUTES.items()}

DenseTargets = tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]


def dense_targets(scene: Scene, patch: int) -> DenseTargets:
    """Attributes, distances to the sides, and weights of a scene's patches.

    int8 [patches, 4], -1 where no object covers more than half; float32 [patches, 4], to the left,
    top, right and bottom in units of :data:`_REACH`; float32 [patches], by which every object
    counts alike, however many patches it has.
    """
    owners = scene.patch_labels(patch).reshape(-1).astype(np.int64)
    codes = [attribute_codes([one.attribute(name) for name in ATTRIBUTES]) for one in scene.objects]
    attributes = np.array([*codes, [-1] * len(ATTRIBUTES)], np.int8)[owners]
    boxes = np.array([*(one.box for one in scene.objects), [0.0] * 4], np.float32)[owners]
    grid = scene.options.side // patch
    middles = (np.arange(grid, dtype=np.float32) + 0.5) * patch
    across, down = np.tile(middles, grid), np.repeat(middles, grid)
    places = np.stack([across, down, across, down], axis=1)
    sides = (boxes - places) * np.array([-1, -1, 1, 1], np.float32) / _REACH
    counts = np.bincount(owners + 1, minlength=len(scene.objects) + 1)
    counts[0] = 0
    weights = np.divide(1.0, counts, where=counts > 0, out=np.zeros(len(counts)))
    return attributes, sides, weights[owners + 1].astype(np.float32)


class DenseHeads(nn.Module):
    """One linear layer for all of a patch's labels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1 + sum(_COUNTS.values()) + 4)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits by label, and ``sides``, float32 [images, patches, ...]."""
        parts = self.linear(features).float().split([1, *_COUNTS.values(), 4], dim=-1)
        return dict(zip(["object", *_COUNTS, "sides"], parts, strict=True))


def dense_losses(
    told: dict[str, Tensor], attributes: Tensor, sides: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """The loss of every label; see :func:`dense_targets`, whose weights are 0 outside objects."""
    covered = (attributes[..., 0] >= 0).float()
    losses = {"object": F.binary_cross_entropy_with_logits(told["object"][..., 0], covered)}
    weight = weights / weights.sum().clamp(min=1e-6)
    for place, name in enumerate(ATTRIBUTES):
        labels = attributes[..., place].long().clamp(min=0)
        logits = told[name].movedim(-1, 1)
        losses[name] = (F.cross_entropy(logits, labels, reduction="none") * weight).sum()
    off = F.smooth_l1_loss(told["sides"], sides, reduction="none", beta=0.2)
    losses["sides"] = (off.mean(dim=-1) * weight).sum()
    return losses


def dense_total(losses: dict[str, Tensor]) -> Tensor:
    """The parts of the loss as one."""
    return torch.stack([share * losses[name] for name, share in _SHARES.items()]).sum()


@torch.no_grad()
def dense_figures(
    told: dict[str, Tensor], attributes: Tensor, sides: Tensor, weights: Tensor
) -> dict[str, float]:
    """Share of right labels (every object counts alike), and pixels that the sides are off."""
    covered = attributes[..., 0] >= 0
    figures = {"object": float(((told["object"][..., 0] > 0) == covered).float().mean())}
    weight = weights[covered] / weights[covered].sum()
    for place, name in enumerate(ATTRIBUTES):
        right = told[name][covered].argmax(dim=-1) == attributes[..., place][covered]
        figures[name] = float((right * weight).sum())
    off = (told["sides"][covered] - sides[covered]).abs().mean(dim=-1)
    figures["side_pixels"] = float((off * weight).sum()) * _REACH
    return figures
