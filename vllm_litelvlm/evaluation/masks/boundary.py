"""Region similarity J and boundary accuracy F of two masks, as DAVIS defines them.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation"
(CVPR 2016), in the form of davis2017-evaluation.
"""

import math

import numpy as np
from numpy.typing import NDArray

from vllm_litelvlm.evaluation.masks.metrics import check_masks, overlap

Mask = NDArray[np.bool_]

#: How far a boundary may be off, as a share of the picture's diagonal.
TOLERANCE = 0.008


def region_similarity(predicted: Mask, truth: Mask) -> float:
    """J: the IoU of two masks, bool [height, width]; 1 where both are empty."""
    return overlap(predicted, truth).iou


def boundary(mask: Mask) -> Mask:
    """The boundary pixels of a mask, bool [height, width] both.

    A pixel is one if it differs from its right, lower or lower right neighbour (seg2bmap of the
    Berkeley benchmark), so that the line is a pixel wide and lies half a pixel up and left of the
    true one. Beyond the last row and column, pixels go on as they are: the picture's rim is no
    boundary.
    """
    beyond = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, both = beyond[:-1, 1:], beyond[1:, :-1], beyond[1:, 1:]
    line: Mask = (mask != right) | (mask != below) | (mask != both)
    return line


def reach(height: int, width: int, tolerance: float = TOLERANCE) -> int:
    """How many pixels a boundary may be off: the tolerance's share of the diagonal, rounded up."""
    return math.ceil(tolerance * math.hypot(height, width))


def widen(line: Mask, radius: int) -> Mask:
    """All pixels within a radius of those of a line, by the distance of pixel centres."""
    import cv2  # comes with vLLM, or with the extra "evaluate": images are judged without

    steps = np.arange(-radius, radius + 1)
    disk = np.add.outer(steps**2, steps**2) <= radius**2
    wide: Mask = cv2.dilate(line.astype(np.uint8), disk.astype(np.uint8)).astype(np.bool_)
    return wide


class Outline:
    """A mask's boundary and what is near it, made once for all comparisons of a frame.

    Args:
        mask: bool [height, width].
        tolerance: a share of the diagonal.
    """

    def __init__(self, mask: Mask, tolerance: float = TOLERANCE) -> None:
        self.line = boundary(mask)
        self.length = int(np.count_nonzero(self.line))
        height, width = mask.shape
        radius = reach(height, width, tolerance)
        self.near = widen(self.line, radius) if self.length else self.line

    def accuracy(self, truth: "Outline") -> float:
        """F of this, the predicted outline: the harmonic mean of precision and recall."""
        if not self.length or not truth.length:
            return float(self.length == truth.length)
        precision = np.count_nonzero(self.line & truth.near) / self.length
        recall = np.count_nonzero(truth.line & self.near) / truth.length
        both = precision + recall
        return 2 * precision * recall / both if both else 0.0


def boundary_accuracy(predicted: Mask, truth: Mask, tolerance: float = TOLERANCE) -> float:
    """F: how well the boundaries of two masks, bool [height, width], agree; 0 to 1.

    Precision is the share of predicted boundary pixels within the tolerance of a right one, recall
    that of right ones near a predicted one. Without any boundary on both sides it is 1, on one
    side 0.
    """
    check_masks(predicted, truth)
    return Outline(predicted, tolerance).accuracy(Outline(truth, tolerance))
