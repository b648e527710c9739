"""A mask in each format is the same mask again."""

import base64
import io
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.grounding.masks import FORMATS, Mask
from vllm_litelvlm.grounding.polygons import polygons

Pixels = NDArray[np.bool_]


def drawn() -> Pixels:
    """A ring in a ring, with a dot in the middle, parts that touch at a corner, and a thin line."""
    image = Image.new("1", (90, 60))
    draw = ImageDraw.Draw(image)
    for radius, colour in ((25, 1), (20, 0), (14, 1), (8, 0), (3, 1)):
        draw.ellipse((30 - radius, 30 - radius, 30 + radius, 30 + radius), fill=colour)
    draw.rectangle((60, 5, 69, 14), fill=1)
    draw.rectangle((70, 15, 79, 24), fill=1)
    draw.line((60, 55, 85, 40), fill=1)
    return np.array(image)


def some_masks() -> list[Pixels]:
    random = np.random.default_rng(0)
    masks = [drawn(), np.zeros((7, 5), bool), np.ones((7, 5), bool), np.ones((1, 1), bool)]
    for _ in range(300):
        height, width = random.integers(1, 20, 2)
        masks.append(random.random((height, width)) < random.random())
    return masks


MASKS = some_masks()


def filled(mask: Pixels) -> Pixels:
    """The polygons of a mask, filled by pycocotools."""
    found = polygons(mask)
    if not found:
        return np.zeros_like(mask)
    parts = coco_mask.frPyObjects(found, *mask.shape)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def twice_the_area(polygon: list[int]) -> int:
    """Signed; what is walked around the other way counts as negative, whatever is there."""
    x, y = np.array(polygon).reshape(-1, 2).T
    return int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def test_run_lengths_are_decoded_to_the_mask() -> None:
    for mask in MASKS:
        run_lengths = json.loads(json.dumps(Mask(mask, 0.5).rle()))
        assert run_lengths["size"] == list(mask.shape)
        assert np.array_equal(coco_mask.decode(run_lengths), mask)


def test_box_and_area_are_those_of_pycocotools() -> None:
    for mask in MASKS:
        made = Mask(mask, 0.5)
        assert made.area == coco_mask.area(made.rle()) == mask.sum()
        if mask.any():
            assert made.bbox == coco_mask.toBbox(made.rle()).tolist()
    assert Mask(np.zeros((4, 4), bool), 0.5).bbox == [0, 0, 0, 0]


def test_png_of_one_bit_is_read_as_the_mask() -> None:
    for mask in MASKS:
        image = Image.open(io.BytesIO(base64.b64decode(Mask(mask, 0.5).png(), validate=True)))
        assert (image.format, image.mode) == ("PNG", "1")
        assert np.array_equal(np.array(image), mask)
        assert np.array_equal(np.array(image.convert("L")), np.uint8(255) * mask)


def test_polygons_are_filled_to_the_mask_exactly() -> None:
    for mask in MASKS:
        assert np.array_equal(filled(mask), mask)


def test_polygons_enclose_the_masks_area_and_go_around_holes_the_other_way() -> None:
    for mask in MASKS:
        areas = [twice_the_area(polygon) for polygon in polygons(mask)]
        assert abs(sum(areas)) == 2 * mask.sum()
        assert len({area > 0 for area in areas}) <= 1


def test_polygons_repeat_no_corner_at_once_and_have_an_area() -> None:
    for mask in MASKS:
        for polygon in polygons(mask):
            corners = np.array(polygon).reshape(-1, 2)
            assert len(corners) >= 4
            assert (corners != np.roll(corners, 1, axis=0)).any(axis=1).all()


def test_polygons_are_one_a_part_on_pixel_corners() -> None:
    assert polygons(np.zeros((4, 4), bool)) == []
    whole, dot = np.ones((3, 5), bool), np.zeros((3, 5), bool)
    dot[1, 2] = True
    assert _corners(polygons(whole)) == {(0, 0), (5, 0), (5, 3), (0, 3)}
    assert _corners(polygons(dot)) == {(2, 1), (3, 1), (3, 2), (2, 2)}
    # Two rings, the dot in the middle, two squares that touch, and the line.
    assert len(polygons(drawn())) == 5


def _corners(found: list[list[int]]) -> set[tuple[int, int]]:
    (polygon,) = found
    assert len(polygon) == 8
    return set(zip(polygon[::2], polygon[1::2], strict=True))


def test_polygons_of_noise_take_little_time() -> None:
    noise = np.random.default_rng(0).random((256, 256)) < 0.6
    assert np.array_equal(filled(noise), noise)


def test_every_format_can_be_sent_and_another_is_refused() -> None:
    mask = Mask(drawn(), 0.5)
    made = {name: json.loads(json.dumps(mask.segmentation(name))) for name in FORMATS}
    assert made == {"rle": mask.rle(), "png": mask.png(), "polygon": mask.polygon()}
    with pytest.raises(OptionsError, match=r"rle, png, polygon; 'jpeg' is none of them"):
        mask.segmentation("jpeg")
