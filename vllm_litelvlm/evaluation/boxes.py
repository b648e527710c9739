"""Boxes as LLaVA-1.5 writes them."""

import re

from vllm_litelvlm.evaluation.samples import Box

_NUMBER = r"\s*(\d*\.?\d+)\s*"
_WRITTEN = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def parse_box(text: str, size: tuple[int, int]) -> Box | None:
    """The first ``[x0, y0, x1, y1]`` in a text, as a box in pixels.

    The numbers are shares of the whole image's width and height, from 0 to 1 and from the left and
    the top; no padding to a square is assumed. ``size`` is the image's width and height in pixels.
    None where there are no four such numbers or where they enclose nothing.
    """
    found = _WRITTEN.search(text)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    if not (left < right <= 1 and top < bottom <= 1):
        return None
    width, height = size
    return left * width, top * height, right * width, bottom * height


def write_box(box: Box, size: tuple[int, int]) -> str:
    """A box in pixels as :func:`parse_box` reads it, with two digits as in LLaVA-1.5's data."""
    width, height = size
    left, top, right, bottom = box
    shares = (left / width, top / height, right / width, bottom / height)
    return f"[{', '.join(f'{share:.2f}' for share in shares)}]"
