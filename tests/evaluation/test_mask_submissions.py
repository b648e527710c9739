"""Submissions of masks, to data sets that lie as MeViS and Refer-YouTube-VOS do."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.masks.submissions import BENCHMARKS, ServerDataset, Submission
from vllm_litelvlm.evaluation.refer_files import DataError

WIDTH, HEIGHT = 37, 21
VIDEOS: dict[str, Any] = {
    "0fea0cb75a25": {
        "expressions": {"0": {"exp": "the  bird flying away"}, "10": {"exp": "birds"}},
        "frames": ["00000", "00005"],
        "vid_id": 7,
    },
    "0ab4afe7fb46": {"expressions": {"0": {"exp": 'a "cat"'}}, "frames": ["00010"]},
}
OF_THE_TEST = {"ff0123": {"expressions": {"0": {"exp": "a dog"}}, "frames": ["00000"]}}


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture(params=list(BENCHMARKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write_benchmark(root: Path, name: str) -> Path:
    """A benchmark's validation split in its own layout."""
    if name == "mevis":
        write_json(root / "valid/meta_expressions.json", {"videos": VIDEOS})
    else:
        both = {"videos": {**VIDEOS, **OF_THE_TEST}}
        write_json(root / "meta_expressions/valid/meta_expressions.json", both)
        write_json(root / "meta_expressions/test/meta_expressions.json", {"videos": OF_THE_TEST})
    for video, described in VIDEOS.items():
        place = root / "valid/JPEGImages" / video
        place.mkdir(parents=True)
        for frame in described["frames"]:
            Image.new("RGB", (WIDTH, HEIGHT)).save(place / f"{frame}.jpg")
    return root


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    return write_benchmark(tmp_path / "data", name)


def test_videos_and_expressions_are_read_and_those_of_the_test_left_out(
    folder: Path, name: str
) -> None:
    dataset = ServerDataset(folder, name)
    assert len(dataset) == 2
    cat, birds = dataset
    assert (cat.name, birds.name) == ("0ab4afe7fb46", "0fea0cb75a25")
    assert [(one.number, one.text, one.target) for one in birds.expressions] == [
        ("0", "the bird flying away", None),
        ("10", "birds", None),
    ]
    assert cat.expressions[0].text == 'a "cat"'
    assert birds.frames == ("00000", "00005")
    assert [picture.size for picture in birds.pictures()] == [(WIDTH, HEIGHT)] * 2


def test_video_without_pictures_is_named_with_the_file_that_leaves_it_out(
    folder: Path, name: str
) -> None:
    own_file = folder / "meta_expressions/test/meta_expressions.json"
    own_file.unlink(missing_ok=True)
    write_json(folder / BENCHMARKS[name].expressions, {"videos": {**VIDEOS, **OF_THE_TEST}})
    with pytest.raises(DataError, match=r"JPEGImages/ff0123 is missing.* put the test's own"):
        ServerDataset(folder, name)
    (folder / "valid/JPEGImages/ff0123").mkdir()
    assert len(ServerDataset(folder, name)) == 3


def fill(submission: Submission, dataset: ServerDataset) -> None:
    for video in dataset:
        for expression in video.expressions:
            for place, frame in enumerate(video.frames):
                mask = np.zeros((HEIGHT, WIDTH), bool)
                mask[place : place + 5, : int(expression.number) + 3] = True
                submission.write(video, expression, frame, mask)


def test_archive_has_a_grey_png_for_every_frame_of_every_expression(
    folder: Path, name: str, tmp_path: Path
) -> None:
    dataset = ServerDataset(folder, name)
    submission = Submission(tmp_path / "masks", dataset)
    fill(submission, dataset)
    (tmp_path / "masks/notes.txt").write_text("not for the server")
    told: list[tuple[int, int]] = []
    archive = submission.pack(tmp_path / "out/masks.zip", lambda *counts: told.append(counts))
    assert told == [(done, 5) for done in range(1, 6)]
    top = {"mevis": "", "refer-youtube-vos": "Annotations/"}[name]
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        assert sorted(opened.namelist()) == sorted(
            f"{top}{video}/{number}/{frame}.png"
            for video, described in VIDEOS.items()
            for number in described["expressions"]
            for frame in described["frames"]
        )
        with opened.open(f"{top}0fea0cb75a25/10/00005.png") as file:
            picture = Image.open(file)
            pixels = np.asarray(picture)
    assert picture.mode == "L"
    assert picture.size == (WIDTH, HEIGHT)
    assert set(np.unique(pixels).tolist()) == {0, 255}
    assert np.count_nonzero(pixels) == 5 * 13
    assert pixels[1, 0] == 255
    assert pixels[0, 0] == 0


def test_what_is_written_is_not_asked_for_anew(folder: Path, name: str, tmp_path: Path) -> None:
    dataset = ServerDataset(folder, name)
    submission = Submission(tmp_path / "masks", dataset)
    _, birds = dataset
    first, second = birds.expressions
    mask = np.zeros((HEIGHT, WIDTH), bool)
    submission.write(birds, first, "00000", mask)
    assert not submission.has(birds, first)
    submission.write(birds, first, "00005", mask)
    again = Submission(tmp_path / "masks", dataset)
    assert again.has(birds, first)
    assert not again.has(birds, second)
    assert len(list(again.missing())) == 3
    assert not list((tmp_path / "masks").rglob("*.part"))


def test_archive_of_less_than_everything_is_refused(
    folder: Path, name: str, tmp_path: Path
) -> None:
    dataset = ServerDataset(folder, name)
    submission = Submission(tmp_path / "masks", dataset)
    fill(submission, dataset)
    (tmp_path / "masks/0fea0cb75a25/10/00000.png").unlink()
    with pytest.raises(DataError, match=r"1 masks are missing, the first is .*/10/00000\.png"):
        submission.pack(tmp_path / "masks.zip")
    assert not (tmp_path / "masks.zip").exists()


@pytest.mark.parametrize(
    ("frame", "mask", "told"),
    [
        ("00001", np.zeros((HEIGHT, WIDTH), bool), "has no frame '00001'"),
        ("00010", np.zeros((WIDTH, HEIGHT), bool), r"bool \[37, 21\]; want bool \[21, 37\]"),
        ("00010", np.zeros((HEIGHT, WIDTH), np.uint8), "is uint8"),
        ("00010", np.zeros((1, HEIGHT, WIDTH), bool), r"bool \[1, 21, 37\]"),
    ],
)
def test_mask_of_another_type_size_or_frame_is_refused(
    folder: Path, name: str, tmp_path: Path, frame: str, mask: Any, told: str
) -> None:
    dataset = ServerDataset(folder, name)
    cat, _ = dataset
    with pytest.raises(ValueError, match=told):
        Submission(tmp_path / "masks", dataset).write(cat, cat.expressions[0], frame, mask)
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("video", "described", "told"),
    [
        ("v", {"frames": ["0"]}, "KeyError: 'expressions'"),
        ("v", {"expressions": {"0": {"exp": "a"}}}, "KeyError: 'frames'"),
        ("v", {"expressions": {"0": {}}, "frames": ["0"]}, "KeyError: 'exp'"),
        ("v", {"expressions": [], "frames": ["0"]}, "AttributeError"),
        ("v", {"expressions": {}, "frames": ["0"]}, "'v' has no expressions"),
        ("v", {"expressions": {"0": {"exp": "a"}}, "frames": []}, "'v' has no frames"),
        ("../v", {"expressions": {"0": {"exp": "a"}}, "frames": ["0"]}, "'../v' is no name"),
        ("v", {"expressions": {"../0": {"exp": "a"}}, "frames": ["0"]}, "'../0' is no name"),
        ("v", {"expressions": {"0": {"exp": "a"}}, "frames": ["/0"]}, "'/0' is no name"),
        ("v", {"expressions": {"0": {"exp": "a"}}, "frames": [0]}, "0 is no name"),
        ("v", None, "TypeError"),
    ],
)
def test_video_that_is_described_otherwise_is_named_with_its_file(
    folder: Path, name: str, video: str, described: object, told: str
) -> None:
    file = folder / BENCHMARKS[name].expressions
    write_json(file, {"videos": {**VIDEOS, video: described}})
    with pytest.raises(DataError) as error:
        ServerDataset(folder, name)
    assert str(file) in str(error.value)
    assert told in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"videos": []}'])
def test_file_in_another_format_is_named(folder: Path, name: str, content: str) -> None:
    file = folder / BENCHMARKS[name].expressions
    file.write_text(content)
    with pytest.raises(DataError, match=r'meta_expressions\.json (is not JSON|has no "videos")'):
        ServerDataset(folder, name)


def test_missing_files_and_unknown_benchmarks_are_named(folder: Path, name: str) -> None:
    (folder / "valid/JPEGImages/0ab4afe7fb46/00010.jpg").unlink()
    cat, _ = ServerDataset(folder, name)
    with pytest.raises(DataError, match=r"00010\.jpg is missing"):
        list(cat.pictures())
    (folder / "valid/JPEGImages").rename(folder / "elsewhere")
    with pytest.raises(DataError, match="JPEGImages is missing"):
        ServerDataset(folder, name)
    (folder / BENCHMARKS[name].expressions).unlink()
    with pytest.raises(DataError, match=r"meta_expressions\.json is missing"):
        ServerDataset(folder, name)
    with pytest.raises(OptionsError, match="'davis'; allowed: mevis, refer-youtube-vos"):
        ServerDataset(folder, "davis")
