"""Masks of images against the right ones: cIoU, gIoU, and precision at thresholds."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_litelvlm.evaluation.analysis.estimate import Estimate
from vllm_litelvlm.evaluation.masks.jackknife import Sums, jackknife

#: The IoU that an expression's mask reaches to be counted as found.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Overlap:
    """Pixels that a predicted and a right mask share, and pixels that they cover together."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """0 to 1. Two empty masks have 1, and an empty one 0 with any other.

        So it is in the evaluation code of LISA and GLaMM (``accuracy_iou[union == 0] += 1``) and
        of GRES (a no-target expression counts 1 where nothing was predicted, else 0). GLaMM adds
        1e-5 to each union, which is not done here: the IoU of one pixel would fall by 1e-5.
        """
        return self.intersection / self.union if self.union else 1.0


def overlap(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Overlap:
    """Compare two masks, bool [height, width], of one size.

    Raises ValueError for other types or sizes.
    """
    check_masks(predicted, truth)
    return Overlap(
        int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth))
    )


def check_masks(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
    """Raise ValueError unless both are bool and of one size."""
    for name, mask in (("predicted", predicted), ("right", truth)):
        if mask.dtype != np.bool_:
            raise ValueError(f"The {name} mask is of {mask.dtype}; want bool: threshold it first.")
    if predicted.shape != truth.shape:
        raise ValueError(
            f"The predicted mask is of {predicted.shape} and the right one of {truth.shape}; "
            "resize the prediction to the picture first."
        )


@dataclass(frozen=True)
class MaskFigures:
    """The figures of many expressions, from 0 to 1, each with its standard error over images.

    ``ciou``: the sum of intersections over the sum of unions, in which large regions weigh more.
    ``giou``: the mean of the expressions' IoUs. ``precision``: by threshold, the share of
    expressions whose IoU reaches it.
    """

    ciou: Estimate
    giou: Estimate
    precision: Mapping[float, Estimate]
    expressions: int


#: Where the sums of an image stand: intersections, unions, IoUs, expressions, found at thresholds.
_INTERSECTION, _UNION, _IOU, _COUNT, _FOUND = range(5)


class MaskScores:
    """Gathers overlaps, of which it keeps a few sums an image."""

    def __init__(self) -> None:
        self._sums: dict[Hashable, Sums] = {}

    def add(self, image: Hashable, found: Overlap) -> None:
        """Note what an expression about an image got; ``image`` tells images apart."""
        sums = self._sums.setdefault(image, np.zeros(_FOUND + len(THRESHOLDS)))
        iou = found.iou
        sums[:_FOUND] += (found.intersection, found.union, iou, 1)
        sums[_FOUND:] += [iou >= threshold for threshold in THRESHOLDS]

    def __bool__(self) -> bool:
        return bool(self._sums)

    def figures(self) -> MaskFigures:
        """All figures; there must be an overlap."""
        parts = np.stack(list(self._sums.values()))
        return MaskFigures(
            ciou=jackknife(parts, _ciou),
            giou=jackknife(parts, lambda sums: sums[..., _IOU] / sums[..., _COUNT]),
            precision={
                threshold: jackknife(parts, _Share(_FOUND + place))
                for place, threshold in enumerate(THRESHOLDS)
            },
            expressions=int(parts[:, _COUNT].sum()),
        )

    def relative(self, whole: "MaskScores") -> Estimate:
        """The ratio of this cIoU to another one of the same expressions, such as unpruned.

        Images are left out of both at a time, so that what makes an image hard for both is no
        error of the ratio. Raises ValueError where images or numbers of expressions differ, or
        where the other cIoU is 0.
        """
        counts = {image: sums[_COUNT] for image, sums in self._sums.items()}
        if counts != {image: sums[_COUNT] for image, sums in whole._sums.items()}:
            raise ValueError("A ratio of cIoUs needs the same expressions on both sides.")
        if not any(sums[_INTERSECTION] for sums in whole._sums.values()):
            raise ValueError("There is no ratio to a cIoU of 0.")
        pairs = [np.stack([sums, whole._sums[image]]) for image, sums in self._sums.items()]
        flat = np.stack(pairs).reshape(len(pairs), -1)
        width = flat.shape[1] // 2
        return jackknife(flat, lambda sums: _ciou(sums[..., :width]) / _ciou(sums[..., width:]))


def _ciou(sums: Sums) -> Sums:
    """1 where nothing was to be found and nothing was: as the IoU, unlike GLaMM's code (0)."""
    intersections, unions = sums[..., _INTERSECTION], sums[..., _UNION]
    return np.where(unions > 0, intersections / np.maximum(unions, 1), 1.0)


@dataclass(frozen=True)
class _Share:
    """The mean over expressions of one of the sums."""

    place: int

    def __call__(self, sums: Sums) -> Sums:
        return sums[..., self.place] / sums[..., _COUNT]
