"""RefCOCO and its relatives, from files in their format."""

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.boxes import parse_box, write_box
from vllm_litelvlm.evaluation.command.arguments import add_arguments
from vllm_litelvlm.evaluation.command.settings import Settings
from vllm_litelvlm.evaluation.command.tasks import Judged, _Sight, load_task
from vllm_litelvlm.evaluation.refer import ReferDataset
from vllm_litelvlm.evaluation.refer_files import DataError
from vllm_litelvlm.evaluation.samples import Sample
from vllm_litelvlm.evaluation.scenes.answers import iou

WIDTH, HEIGHT = 60, 40
IMAGES = "images/mscoco/images/train2014"


def reference(number: int, image: int, annotation: int, split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"tokens": text.split(), "raw": text.upper(), "sent": text, "sent_id": 10 * number + place}
        for place, text in enumerate(texts)
    ]
    return {
        "ref_id": number,
        "ann_id": annotation,
        "image_id": image,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image:012}_{number}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


REFERENCES = [
    reference(1, 7, 70, "val", "the left cup", "a cup", "red one", "cup on the left"),
    reference(2, 8, 80, "testA", "woman in blue"),
    reference(3, 7, 71, "val", "the dog"),
    reference(4, 8, 80, "train", "a woman"),
    reference(5, 9, 90, "val", "the tree"),
]
# Column by column, as COCO counts: 10 columns without, then 5 rows of 2 columns, at the top.
RUNS = [10 * HEIGHT, 5, HEIGHT - 5, 5, (WIDTH - 11) * HEIGHT - 5]
ANNOTATIONS = [
    {
        "id": 70,
        "image_id": 7,
        "bbox": [6.0, 4.0, 12.0, 10.0],
        "segmentation": [[6, 4, 18, 4, 18, 14, 6, 14]],
    },
    {"id": 71, "image_id": 7, "segmentation": {"counts": RUNS, "size": [HEIGHT, WIDTH]}},
    {
        "id": 80,
        "image_id": 8,
        "bbox": [0.5, 0.5, 3.0, 2.0],
        "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2], [40, 20, 44, 20, 44, 30, 40, 30]],
    },
    {"id": 90, "image_id": 9, "bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]},
]


def write_refer(data: Path) -> Path:
    """RefCOCO of three images in the refer toolkit's layout."""
    own = data / "refcoco"
    own.mkdir(parents=True)
    # Protocol 0, as Python 2 wrote the published files.
    (own / "refs(unc).p").write_bytes(pickle.dumps(REFERENCES, protocol=0))
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
        for number in (7, 8, 9)
    ]
    (own / "instances.json").write_text(json.dumps({"images": images, "annotations": ANNOTATIONS}))
    (data / IMAGES).mkdir(parents=True)
    for number in (7, 8, 9):
        Image.new("L", (WIDTH, HEIGHT), 20 * number).save(data / IMAGES / f"{number}.jpg")
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_refer(tmp_path)


def test_every_sentence_is_a_sample_and_those_of_an_image_follow_each_other(folder: Path) -> None:
    dataset = ReferDataset(folder, "refcoco", "val")
    samples = list(dataset)
    assert len(dataset) == len(samples) == 6
    assert [sample.texts for sample in samples] == [
        ("the left cup",),
        ("a cup",),
        ("red one",),
        ("cup on the left",),
        ("the dog",),
        ("the tree",),
    ]
    assert samples[4].name == "refcoco-3-30"
    assert len({sample.name for sample in samples}) == 6
    assert samples[0].kind == "box"
    assert samples[0].image.mode == "RGB"
    assert samples[0].image is samples[4].image
    assert samples[0].prompt.endswith("region this sentence describes: the left cup.")


def test_polygons_and_run_lengths_become_boxes_and_masks(folder: Path) -> None:
    by_name = {sample.name: sample for sample in ReferDataset(folder, "refcoco", "val")}
    cup = by_name["refcoco-1-10"]
    assert cup.box == (6, 4, 18, 14)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[4:14, 6:18] = True
    assert cup.mask is not None
    assert cup.mask.dtype == bool
    assert np.array_equal(cup.mask, expected)
    dog = by_name["refcoco-3-30"]
    assert dog.box == (10, 0, 12, 5)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[0:5, 10:12] = True
    assert dog.mask is not None
    assert np.array_equal(dog.mask, expected)


def test_polygons_of_one_region_are_joined_and_the_annotations_box_is_taken(folder: Path) -> None:
    [sample] = ReferDataset(folder, "refcoco", "testA")
    assert sample.box == (0.5, 0.5, 3.5, 2.5)
    assert sample.mask is not None
    assert sample.mask.sum() == 3 * 2 + 4 * 10


def test_compressed_run_lengths_are_read(folder: Path) -> None:
    from pycocotools import mask as coco_mask

    file = folder / "refcoco/instances.json"
    content = json.loads(file.read_text())
    [dog] = [one for one in content["annotations"] if one["id"] == 71]
    packed = coco_mask.frPyObjects(dog["segmentation"], HEIGHT, WIDTH)
    dog["segmentation"] = {**packed, "counts": packed["counts"].decode()}
    file.write_text(json.dumps(content))
    samples = {sample.name: sample for sample in ReferDataset(folder, "refcoco", "val")}
    assert samples["refcoco-3-30"].box == (10, 0, 12, 5)


def test_three_sentences_an_image_share_their_texts(folder: Path) -> None:
    dataset = ReferDataset(folder, "refcoco", "val", per_image=3, texts=3)
    samples = list(dataset)
    assert len(dataset) == len(samples) == 4
    together = ("the left cup", "a cup", "red one")
    assert [sample.texts for sample in samples] == [together] * 3 + [("the tree",)]
    assert "describes: a cup." in samples[1].prompt


def test_a_fourth_sentence_starts_texts_of_its_own(folder: Path) -> None:
    samples = list(ReferDataset(folder, "refcoco", "val", texts=3))
    assert [len(sample.texts) for sample in samples] == [3, 3, 3, 2, 2, 1]
    assert samples[4].texts == ("cup on the left", "the dog")


def test_split_that_the_set_does_not_have_is_named_with_those_it_has(folder: Path) -> None:
    with pytest.raises(OptionsError, match="no split 'testB'; it has testA, train, val"):
        ReferDataset(folder, "refcoco", "testB")


@pytest.mark.parametrize("missing", ["refcoco/refs(unc).p", "refcoco/instances.json"])
def test_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(DataError) as told:
        ReferDataset(folder, "refcoco", "val")
    assert str(folder / missing) in str(told.value)


def test_missing_image_folder_and_image_are_named(folder: Path) -> None:
    file = folder / IMAGES / "7.jpg"
    file.unlink()
    with pytest.raises(DataError, match=r"7\.jpg is missing"):
        list(ReferDataset(folder, "refcoco", "val"))
    (folder / "images").rename(folder / "elsewhere")
    with pytest.raises(DataError, match="train2014 is missing"):
        ReferDataset(folder, "refcoco", "val")


def test_image_of_another_size_is_refused(folder: Path) -> None:
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / IMAGES / "7.jpg")
    with pytest.raises(DataError, match=r"40 x 60 pixels; instances\.json says 60 x 40"):
        list(ReferDataset(folder, "refcoco", "val"))


def test_reference_to_an_unknown_region_is_refused(folder: Path) -> None:
    broken = [*REFERENCES, reference(6, 7, 99, "val", "nothing")]
    (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps(broken))
    with pytest.raises(DataError, match="reference 6 is of image 7 and annotation 99"):
        ReferDataset(folder, "refcoco", "val")


class Malicious:
    """Would write a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_pickle_that_would_run_something_is_refused_and_runs_nothing(
    folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "touched"
    (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps([Malicious(target)]))
    with pytest.raises(DataError, match="Only containers, texts and numbers are allowed"):
        ReferDataset(folder, "refcoco", "val")
    assert not target.exists()


@pytest.mark.parametrize("call", [b"cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n(S'1'\ntR."])
def test_pickle_that_names_a_function_is_refused(folder: Path, call: bytes) -> None:
    (folder / "refcoco/refs(unc).p").write_bytes(call)
    with pytest.raises(DataError, match="it asks for"):
        ReferDataset(folder, "refcoco", "val")


@pytest.mark.parametrize("content", [{"a": 1}, [{"ref_id": 1}], [3]])
def test_pickle_of_something_else_is_refused(folder: Path, content: Any) -> None:
    (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p"):
        ReferDataset(folder, "refcoco", "val")


@pytest.mark.parametrize("option", ["per_image", "texts"])
def test_counts_below_one_are_refused(folder: Path, option: str) -> None:
    counts: dict[str, Any] = {option: 0}
    with pytest.raises(OptionsError, match=f"{option}=0"):
        ReferDataset(folder, "refcoco", "val", **counts)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.25, 0.5, 0.75, 1.0]", (50, 50, 150, 100)),
        ("It is at [0,0 , .5,1] I think", (0, 0, 100, 100)),
        ("0.25, 0.5, 0.75, 1.0", None),
        ("[0.25, 0.5, 0.75]", None),
        ("[0.75, 0.5, 0.25, 1.0]", None),
        ("[0.2, 0.5, 1.25, 1.0]", None),
        ("[-0.2, 0.5, 0.25, 1.0]", None),
        ("[a, b, c, d]", None),
        ("", None),
    ],
)
def test_written_box_is_read_or_none(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text, (0, 0, 200, 100)) == box


def test_box_is_read_as_it_was_written() -> None:
    text = write_box((50, 25, 150, 100), (0, 0, 200, 100))
    assert text == "[0.25, 0.25, 0.75, 1.00]"
    assert parse_box(text, (0, 0, 200, 100)) == (50, 25, 150, 100)


def test_set_is_evaluated_by_the_overlap_of_boxes(folder: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = ["--url=http://nowhere", "--dataset=refcoco", f"--data={folder}", "--per-image=3"]
    task = load_task(Settings.of(parser.parse_args([*arguments, "--frame=pad"])))
    cup, *_ = samples = list(task.dataset)
    assert len(samples) == 4
    assert (WIDTH, HEIGHT) == (60, 40)  # padded by 10 above and below
    assert task.judge(cup, f"[0.1, {14 / 60}, 0.3, 0.4]") == Judged(1, pytest.approx(1))
    assert task.judge(cup, f"[0.1, {14 / 60}, 0.2, 0.4]") == Judged(0, pytest.approx(0.5))
    # The middle is cropped unless something else is said: 10 at the left and right are not seen.
    cropped = load_task(Settings.of(parser.parse_args(arguments)))
    assert cropped.judge(cup, "[0, 0.1, 0.2, 0.35]").iou == pytest.approx(8 / 12)
    assert task.judge(cup, "on the left") == Judged(0, 0)
    assert task.judge(cup, task.guess(cup)).score == 0
    assert task.max_tokens(cup) > 32


def test_equal_answers_are_worth_the_same_in_a_wide_frame() -> None:
    """The model sees the same pixels, so it answers the same; only where they are is different."""
    random = np.random.default_rng(0)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    see = _Sight(Settings.of(parser.parse_args(["--url=http://nowhere", "--dataset=refcoco"])))
    scores: dict[str, list[float]] = {"square": [], "wide": []}
    for _ in range(100):
        left, top = random.uniform(0, 200, 2)
        box = (left, top, left + random.uniform(40, 130), top + random.uniform(40, 130))
        near: Any = tuple(edge + random.uniform(-9, 9) for edge in box)
        answer = write_box(near, (0, 0, 336, 336))
        for name, x in (("square", 0), ("wide", 300)):
            image = Image.new("RGB", (336 + 2 * x, 336))
            there = (box[0] + x, box[1], box[2] + x, box[3])
            sample = Sample("name", image, "Where?", (), "box", box=there)
            read = parse_box(answer, see(sample))
            assert read is not None
            scores[name].append(iou(read, there))
    assert scores["wide"] == pytest.approx(scores["square"])
    assert 0.5 < np.mean(scores["wide"]) < 0.95
