"""How answers are written, read and judged."""

import math
import re

from vllm_litelvlm.evaluation.samples import Box, Sample

#: The largest number in a box that is written; the smallest is 0.
LARGEST = 99

#: What :func:`read_box` reads, in words.
BOX_FORM = f'"left top right bottom", whole numbers from 0 to {LARGEST}'

#: The overlap that a box must exceed to be right.
LEAST_IOU = 0.5

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_NUMBERS = {name: str(number) for number, name in enumerate(_NAMES)}
_GAP = r"[\s,;()\[\]]"
_BOX = re.compile(rf"{_GAP}*(\d\d?){_GAP}+(\d\d?){_GAP}+(\d\d?){_GAP}+(\d\d?){_GAP}*\.?\s*")


def write_box(box: Box, width: int, height: int) -> str:
    """A box as an answer: left, top, right, bottom as "07 12 40 56".

    Pixels 0 to ``width`` (``height``) of the image become 0 to 99 in equal steps, rounded to the
    nearest, a half upwards, and are written with two digits.
    """
    sides = (width, height, width, height)
    numbers = [
        min(max(math.floor(edge / side * LARGEST + 0.5), 0), LARGEST)
        for edge, side in zip(box, sides, strict=True)
    ]
    return " ".join(f"{number:02d}" for number in numbers)


def read_box(answer: str, width: int, height: int) -> Box | None:
    """The box that an answer writes, in pixels; None for what is not a box.

    Commas and brackets and numbers of one digit are let pass.
    """
    found = _BOX.fullmatch(answer)
    if found is None:
        return None
    horizontal, vertical = width / LARGEST, height / LARGEST
    left, top, right, bottom = (int(number) for number in found.groups())
    if left >= right or top >= bottom:
        return None
    return left * horizontal, top * vertical, right * horizontal, bottom * vertical


def iou(one: Box, other: Box) -> float:
    """The area that two boxes share, as a share of the area that they cover; 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    covered = _area(one) + _area(other) - shared
    return shared / covered if covered else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def right_answer(sample: Sample) -> str:
    """The text that answers a sample, the one to train on."""
    if sample.answer is not None:
        return sample.answer
    assert sample.box is not None, f"{sample.name} has neither an answer nor a box"
    return write_box(sample.box, *sample.image.size)


def is_right(sample: Sample, answer: str) -> bool:
    """Whether an answer is right.

    A box must overlap the sample's by more than :data:`LEAST_IOU`. Of other answers, the letters
    and digits count, in whatever case, and "two" is "2".
    """
    if sample.answer is None:
        box = read_box(answer, *sample.image.size)
        return box is not None and sample.box is not None and iou(box, sample.box) > LEAST_IOU
    return _plain(answer) == _plain(sample.answer)


def _plain(answer: str) -> list[str]:
    words = re.findall(r"[^\W_]+", answer.casefold())
    return [_NUMBERS.get(word, word) for word in words]
