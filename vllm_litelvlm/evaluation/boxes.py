"""Boxes as LLaVA-1.5 writes them."""

import re

from vllm_litelvlm.evaluation.samples import Box

_NUMBER = r"\s*(\d*\.?\d+)\s*"
_WRITTEN = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


#: What :func:`parse_box` reads, in words.
FORM = "[x0, y0, x1, y1], shares from 0 to 1 of what the model sees"


def parse_box(text: str, shown: Box) -> Box | None:
    """The first ``[x0, y0, x1, y1]`` in a text, as a box in pixels of the picture.

    The numbers are shares of the width and height of what the model sees, from 0 to 1 and from the
    left and the top. ``shown`` is where in the picture that is
    (:func:`vllm_litelvlm.vision.frame.shown`). None where there are no four such numbers or where
    they enclose nothing.
    """
    found = _WRITTEN.search(text)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    if not (left < right <= 1 and top < bottom <= 1):
        return None
    x, y, width, height = _corner_and_size(shown)
    return x + left * width, y + top * height, x + right * width, y + bottom * height


def write_box(box: Box, shown: Box) -> str:
    """A box in pixels as :func:`parse_box` reads it, with two digits as in LLaVA-1.5's data.

    Of a box that reaches beyond ``shown``, the part inside.
    """
    x, y, width, height = _corner_and_size(shown)
    left, top, right, bottom = box
    shares = ((left - x) / width, (top - y) / height, (right - x) / width, (bottom - y) / height)
    shares = tuple(min(max(share, 0.0), 1.0) for share in shares)  # type: ignore[assignment]
    return f"[{', '.join(f'{share:.2f}' for share in shares)}]"


def _corner_and_size(shown: Box) -> tuple[float, float, float, float]:
    left, top, right, bottom = shown
    return left, top, right - left, bottom - top
