"""cIoU, gIoU and precision of masks, and which expressions they are taken over."""

import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_refer import ANNOTATIONS, HEIGHT, IMAGES, REFERENCES, WIDTH
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.masks.metrics import MaskScores, Overlap, overlap
from vllm_litelvlm.evaluation.masks.protocol import ALL, AUTHORS, Protocol
from vllm_litelvlm.evaluation.refer import ReferDataset
from vllm_litelvlm.evaluation.samples import Sample
from vllm_litelvlm.evaluation.scenes.dataset import SceneDataset


def square(side: int, left: int, top: int, size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_shifted_squares_overlap_by_the_pixels_they_share() -> None:
    found = overlap(square(10, 5, 5, 40), square(10, 8, 9, 40))
    assert found == Overlap(7 * 6, 200 - 7 * 6)
    assert found.iou == pytest.approx(42 / 158)


def test_empty_masks_agree_and_a_mask_of_nothing_is_worth_nothing() -> None:
    empty, some = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    assert overlap(empty, empty).iou == 1
    assert overlap(some, empty) == Overlap(0, 20)
    assert overlap(some, empty).iou == overlap(empty, some).iou == 0


@pytest.mark.parametrize(
    ("predicted", "told"),
    [
        (np.zeros((4, 5), np.uint8), "predicted mask is of uint8; want bool"),
        (np.zeros((5, 4), bool), r"\(5, 4\) and the right one of \(4, 5\); resize"),
    ],
)
def test_masks_of_other_types_or_sizes_are_refused(predicted: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        overlap(predicted, np.zeros((4, 5), bool))


def gather(*found: tuple[int, int, int]) -> MaskScores:
    scores = MaskScores()
    for image, intersection, union in found:
        scores.add(image, Overlap(intersection, union))
    return scores


def test_ciou_weighs_by_area_and_giou_does_not() -> None:
    figures = gather((0, 90, 100), (0, 0, 10), (1, 5, 10)).figures()
    assert figures.ciou.mean == pytest.approx(95 / 120)
    assert figures.giou.mean == pytest.approx((0.9 + 0 + 0.5) / 3)
    assert {at: share.mean for at, share in figures.precision.items()} == {
        0.5: pytest.approx(2 / 3),
        **dict.fromkeys((0.6, 0.7, 0.8, 0.9), pytest.approx(1 / 3)),
    }
    assert figures.expressions == 3
    assert figures.ciou.images == 2
    assert not MaskScores()


def test_nothing_found_where_nothing_is_counts_in_giou_and_not_in_ciou() -> None:
    figures = gather((0, 0, 0), (1, 5, 10)).figures()
    assert figures.ciou.mean == 0.5
    assert figures.giou.mean == 0.75
    assert gather((0, 0, 0)).figures().ciou.mean == 1


def test_standard_error_leaves_out_one_image_at_a_time() -> None:
    of_images = [[(3, 10), (7, 9)], [(1, 20)], [(8, 8), (0, 4), (2, 5)], [(6, 7)]]
    found = [(i, *one) for i, image in enumerate(of_images) for one in image]
    figures = gather(*found).figures()
    cious, gious = [], []
    for left_out in range(len(of_images)):
        rest = [(a, b) for i, a, b in found if i != left_out]
        cious.append(sum(a for a, _ in rest) / sum(b for _, b in rest))
        gious.append(sum(a / b for a, b in rest) / len(rest))
    for estimate, values in ((figures.ciou, cious), (figures.giou, gious)):
        mean = sum(values) / len(values)
        expected = math.sqrt(3 / 4 * sum((value - mean) ** 2 for value in values))
        assert estimate.standard_error == pytest.approx(expected)


def test_standard_error_is_that_of_the_mean_where_each_image_has_one_expression() -> None:
    values = np.random.default_rng(0).integers(0, 101, 50)
    estimate = gather(*((i, int(value), 100) for i, value in enumerate(values))).figures().giou
    assert estimate.standard_error == pytest.approx(np.std(values / 100, ddof=1) / math.sqrt(50))


def test_more_expressions_about_one_image_do_not_make_a_figure_surer() -> None:
    once = [(image, image, 10) for image in range(8)]
    single, repeated = gather(*once).figures(), gather(*once * 5).figures()
    assert repeated.ciou.mean == pytest.approx(single.ciou.mean)
    assert repeated.ciou.standard_error == pytest.approx(single.ciou.standard_error)
    assert gather((0, 1, 2), (0, 1, 3)).figures().giou.standard_error is None


def test_standard_error_covers_the_truth() -> None:
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        scores = MaskScores()
        for image in range(60):
            ease = random.uniform(0.2, 0.9)
            for _ in range(int(random.integers(1, 6))):
                union = int(random.integers(50, 400))
                scores.add(image, Overlap(int(random.binomial(union, ease)), union))
        ciou = scores.figures().ciou
        assert ciou.standard_error is not None
        inside += abs(ciou.mean - 0.55) < 1.96 * ciou.standard_error
    assert 0.90 <= inside / 200 <= 0.99


def test_ratio_to_the_same_expressions_is_surer_than_its_parts() -> None:
    random = np.random.default_rng(2)
    hard = [(image, int(random.integers(10, 90)), 100) for image in range(40)]
    whole = gather(*hard)
    pruned = gather(*((image, round(0.9 * shared), union) for image, shared, union in hard))
    ratio = pruned.relative(whole)
    assert ratio.mean == pytest.approx(0.9, abs=0.01)
    assert ratio.standard_error is not None
    assert ratio.standard_error < 0.005
    assert whole.relative(whole).standard_error == pytest.approx(0)
    with pytest.raises(ValueError, match="the same expressions"):
        pruned.relative(gather(*hard[:-1]))
    with pytest.raises(ValueError, match="cIoU of 0"):
        gather((0, 1, 2)).relative(gather((0, 0, 2)))


def samples(*counts: int, kind: str = "box") -> Iterator[Sample]:
    for number, count in enumerate(counts):
        image = Image.new("RGB", (4, 3), number)
        for place in range(count):
            name = f"set-{number}-{place}"
            mask = np.ones((3, 4), bool)
            yield Sample(name, image, f"Where is {name}?", (name,), kind, mask=mask)


def names(protocol: Protocol, *counts: int) -> list[list[list[str]]]:
    return [
        [[one.name for one in conversation] for conversation in image.conversations]
        for image in protocol.images(samples(*counts))
    ]


def test_authors_take_three_expressions_an_image_at_most_and_the_same_each_time() -> None:
    chosen = names(AUTHORS, 2, 3, 9, 1)
    assert [[len(one) for one in image] for image in chosen] == [[2], [3], [3], [1]]
    assert chosen[0] == [["set-0-0", "set-0-1"]]
    assert chosen[1] == [["set-1-0", "set-1-1", "set-1-2"]]
    assert len(set(chosen[2][0])) == 3
    assert names(AUTHORS, 2, 3, 9, 1) == chosen
    assert names(AUTHORS, 5, 5, 9)[2] == chosen[2]  # whatever else there is
    assert names(Protocol(seed=1), 2, 3, 9, 1)[2] != chosen[2]


def test_every_expression_is_drawn_as_often_as_the_others() -> None:
    counts = np.zeros(6)
    for image in names(AUTHORS, *[6] * 600):
        counts[[int(name[-1]) for name in image[0]]] += 1
    assert counts.sum() == 1800
    assert np.abs(counts / 600 - 0.5).max() < 0.08


def test_all_expressions_are_asked_three_together() -> None:
    [many, few] = names(ALL, 7, 2)
    assert [len(one) for one in many] == [3, 3, 1]
    asked = [name for group in many for name in group]
    assert asked == [f"set-0-{place}" for place in range(7)]
    assert few == [["set-1-0", "set-1-1"]]


def test_refcoco_is_asked_by_both_protocols(tmp_path: Path) -> None:
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(REFERENCES, protocol=0))
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
        for number in (7, 8, 9)
    ]
    described = {"images": images, "annotations": ANNOTATIONS}
    (tmp_path / "refcoco/instances.json").write_text(json.dumps(described))
    (tmp_path / IMAGES).mkdir(parents=True)
    for number in (7, 8, 9):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / IMAGES / f"{number}.jpg")
    dataset = ReferDataset(tmp_path, "refcoco", "val")
    counts = {
        protocol: [[len(group) for group in one.conversations] for one in protocol.images(dataset)]
        for protocol in (AUTHORS, ALL)
    }
    assert counts == {AUTHORS: [[3], [1]], ALL: [[3, 2], [1]]}
    [cup_and_dog, _] = ALL.images(dataset)
    asked = [one for group in cup_and_dog.conversations for one in group]
    assert [(one.text, int(one.mask.sum())) for one in asked[3:]] == [
        ("cup on the left", 120),
        ("the dog", 10),
    ]


def test_questions_that_refer_to_no_region_are_left_out() -> None:
    assert list(AUTHORS.images(samples(3, kind="count"))) == []
    without = Sample("a", Image.new("RGB", (2, 2)), "?", ("a",), "box")
    assert list(AUTHORS.images([without])) == []


def test_scenes_are_asked_by_the_questions_own_expression_and_mask() -> None:
    dataset = SceneDataset("test", 40, texts=4)
    images = list(ALL.images(dataset))
    boxes = [sample for sample in dataset if sample.kind == "box"]
    asked = [one for image in images for group in image.conversations for one in group]
    assert [one.name for one in asked] == [sample.name for sample in boxes]
    for one, sample in zip(asked, boxes, strict=True):
        assert one.text == sample.question.texts[0]
        [expression] = sample.question.expressions
        assert np.array_equal(one.mask, sample.scene.mask(expression.target))
    assert [image.number for image in images] == list(range(len(images)))
    assert len(images) == len({sample.scene.seed for sample in boxes})


def test_samples_that_share_their_texts_and_small_numbers_are_refused() -> None:
    shared = Sample(
        "a", Image.new("RGB", (2, 2)), "?", ("a", "b"), "box", mask=np.ones((2, 2), bool)
    )
    with pytest.raises(OptionsError, match="load the data set with texts=1"):
        list(AUTHORS.images([shared]))
    for option in ({"per_image": 0}, {"together": 0}, {"seed": -1}):
        wrong: dict[str, Any] = option
        with pytest.raises(OptionsError, match=next(iter(option))):
            Protocol(**wrong)
