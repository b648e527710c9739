"""What is written down of masks, so that an evaluation can be taken up again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vllm_litelvlm.evaluation.command.record import Journal

#: COCO's run lengths: height and width, and the counts as printable ASCII.
RunLengths = dict[str, Any]


@dataclass(frozen=True)
class ImageMasked:
    """What one condition got in one conversation about an image.

    ``names`` are those of its expressions, ``protocols`` the ones that ask them so; ``overlaps``
    pixels of intersection and union. ``took`` is the seconds since the answer before, of all that
    was asked together; ``all_tokens`` the visual tokens of an image that is not pruned. ``masks``
    are kept of the first pictures.
    """

    condition: str
    image: int
    names: tuple[str, ...]
    protocols: tuple[str, ...]
    overlaps: tuple[tuple[int, int], ...]
    prompt_tokens: float
    all_tokens: int
    took: float
    masks: tuple[RunLengths, ...] | None

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """The condition and the conversation."""
        return self.condition, tuple(self.names)


@dataclass(frozen=True)
class VideoMasked:
    """What one condition got for one annotator's expressions about a video, as J and F of each.

    ``published``: of each object by the published evaluation; None where an object has several
    expressions, which it does not know. ``masks``: those of the expressions in
    the middle frame, kept of the first videos.
    """

    condition: str
    annotator: str
    video: str
    expressions: tuple[tuple[float, float], ...]
    published: tuple[tuple[float, float], ...] | None
    prompt_tokens: float
    all_tokens: int
    frames: int
    took: float
    masks: tuple[RunLengths, ...] | None

    @property
    def key(self) -> tuple[str, str, str]:
        """The condition, the annotator and the video."""
        return self.condition, self.annotator, self.video


@dataclass(frozen=True)
class Begun:
    """Of a submission: the visual tokens of a picture that is not pruned."""

    all_tokens: int

    @property
    def key(self) -> str:
        """There is one such line."""
        return "begun"


class ImageRecord(Journal[ImageMasked]):
    """Of images."""

    kind = ImageMasked


class VideoRecord(Journal[VideoMasked]):
    """Of videos."""

    kind = VideoMasked


class SubmissionRecord(Journal[Begun]):
    """Of a submission, whose masks are files."""

    kind = Begun


def encoded(masks: Sequence[NDArray[np.bool_]]) -> tuple[RunLengths, ...]:
    """Masks, bool [height, width], as JSON holds them."""
    lengths = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return tuple({**one, "counts": one["counts"].decode("ascii")} for one in lengths)


def decoded(one: RunLengths) -> NDArray[np.bool_]:
    """A mask, bool [height, width]."""
    mask: NDArray[np.bool_] = coco_mask.decode(one).astype(np.bool_)
    return mask
