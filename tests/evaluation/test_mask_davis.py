"""Ref-DAVIS17 from small sets in its published layout, and how it is judged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.masks.davis import ANNOTATORS, DavisVideo, RefDavis, read_labels
from vllm_litelvlm.evaluation.masks.judging import Similarity
from vllm_litelvlm.evaluation.masks.ref_davis import judge_as_published, judge_expressions
from vllm_litelvlm.evaluation.refer_files import DataError

Labels = NDArray[np.uint8]
#: Odd on purpose.
WIDTH, HEIGHT = 53, 31
FRAMES = 4

#: The colours of the first objects in DAVIS' palette, which has all 256: 255 is one of them.
FEW = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
PALETTE = FEW + [level for level in range(4, 256) for _ in range(3)]

TEXTS = {
    "annot1": 'classic-car 1 "a red car"\nkite-surf 2 "a  man on a board"\nkite-surf 1 "a kite"\n'
    'bear 1 "a bear"\n',
    # Quotes inside, the ends of lines of Windows, misspelt, and a line that says nothing.
    "annot1_full_video": '\r\nclasic-car 1 "a "vintage" car"\r\nkite-surf 1 "the kite"\r\n'
    'kite-surf 2 "a man\'s board"\r\nkite-surf 1 "the kite again"\r\n',
    "annot2": "classic-car 1 “a café's car”\nkite-surf 1 'kite'\nkite-surf 2 surfer\n",
    "annot2_full_video": 'classic-car 1 "a caf\xe9 car"\nkite-surf 1 "kite"\nkite-surf 2 "he"',
}


def save_labels(file: Path, labels: Labels, mode: str = "P") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette(PALETTE)
    picture.convert(mode).save(file)


def kite(frame: int) -> Labels:
    """Object 1 moves to the right and is gone in frame 2; object 2 stays; 255 does not count."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    if frame != 2:
        labels[3:11, 2 + frame : 12 + frame] = 1
    labels[15:28, 20:40] = 2
    labels[0, :] = 255
    return labels


def car(frame: int) -> Labels:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:25, 5 + frame : 30] = 1
    return labels


def write_davis(data: Path) -> Path:
    """Two sequences of the validation split in the published layout."""
    root = data / "DAVIS"
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("classic-car\r\nkite-surf\r\n\n")
    (root / "ImageSets/2017/train.txt").write_text("bear\n")
    sequences: dict[str, Callable[[int], Labels]] = {"classic-car": car, "kite-surf": kite}
    for sequence, drawn in sequences.items():
        pictures = root / "JPEGImages/480p" / sequence
        pictures.mkdir(parents=True)
        for frame in range(FRAMES):
            Image.new("RGB", (WIDTH, HEIGHT), (40 * frame,) * 3).save(pictures / f"{frame:05}.jpg")
            for annotations in ("Annotations_unsupervised", "Annotations"):
                mode = "L" if sequence == "classic-car" else "P"
                file = root / annotations / "480p" / sequence / f"{frame:05}.png"
                save_labels(file, drawn(frame), mode)
    texts = data / "davis_text_annotations"
    texts.mkdir()
    for annotator, content in TEXTS.items():
        encoding = "latin-1" if annotator == "annot2_full_video" else "utf-8"
        (texts / f"Davis17_{annotator}.txt").write_bytes(content.encode(encoding))
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_davis(tmp_path)


def said(folder: Path, annotator: Any) -> list[list[tuple[int | None, str]]]:
    dataset = RefDavis(folder, annotator)
    return [[(one.target, one.text) for one in video.expressions] for video in dataset]


def test_each_annotator_says_something_about_each_object(folder: Path) -> None:
    assert said(folder, "annot1") == [[(1, "a red car")], [(1, "a kite"), (2, "a man on a board")]]
    assert said(folder, "annot1_full_video") == [
        [(1, 'a "vintage" car')],
        [(1, "the kite"), (1, "the kite again"), (2, "a man's board")],
    ]
    assert said(folder, "annot2") == [[(1, "a café's car")], [(1, "kite"), (2, "surfer")]]
    assert said(folder, "annot2_full_video") == [[(1, "a café car")], [(1, "kite"), (2, "he")]]
    assert len(ANNOTATORS) == 4
    assert len(RefDavis(folder / "DAVIS", "annot1")) == 2


def test_videos_have_frames_in_order_and_truth_of_every_object(folder: Path) -> None:
    clip, video = RefDavis(folder, "annot1")
    assert (clip.name, clip.objects, video.name, video.objects) == (
        "classic-car",
        1,
        "kite-surf",
        2,
    )
    assert video.frames == ("00000", "00001", "00002", "00003")
    pictures = list(video.pictures())
    assert [picture.mode for picture in pictures] == ["RGB"] * FRAMES
    assert [picture.getpixel((0, 0)) for picture in pictures[1:3]] == [(40,) * 3, (80,) * 3]
    assert video.size() == (WIDTH, HEIGHT)
    for of_video, drawn in ((clip, car), (video, kite)):
        for frame, truth in enumerate(of_video.truth()):
            labels = drawn(frame)
            assert truth.masks.dtype == truth.void.dtype == bool
            assert truth.masks.shape == (of_video.objects, HEIGHT, WIDTH)
            for place, mask in enumerate(truth.masks):
                assert np.array_equal(mask, labels == place + 1)
            assert np.array_equal(truth.void, labels == 255)
    assert not list(video.truth())[2].masks[0].any()


def test_semi_supervised_task_leaves_out_both_ends_and_counts_every_pixel(folder: Path) -> None:
    _, video = RefDavis(folder, "annot1", task="semi-supervised")
    assert video.judged == range(1, 3)
    assert not any(truth.void.any() for truth in video.truth())
    _, video = RefDavis(folder, "annot1")
    assert video.judged == range(FRAMES)


def right(video: DavisVideo) -> list[NDArray[np.bool_]]:
    targets = [(one.target or 0) - 1 for one in video.expressions]
    return [truth.masks[targets] for truth in video.truth()]


@pytest.mark.parametrize("annotator", ANNOTATORS)
def test_right_masks_are_worth_everything_and_none_only_where_nothing_is(
    folder: Path, annotator: Any
) -> None:
    _, video = RefDavis(folder, annotator)
    masks = right(video)
    assert set(judge_expressions(video, masks)) == {Similarity(1, 1)}
    worth = judge_expressions(video, [np.zeros_like(one) for one in masks])
    assert worth[0] == Similarity(0.25, 0.25)  # the kite is gone in one frame of four
    assert worth[-1] == Similarity(0, 0)


def test_published_evaluation_matches_masks_with_objects_anew(folder: Path) -> None:
    _, video = RefDavis(folder, "annot1")
    swapped = [masks[::-1] for masks in right(video)]
    assert judge_as_published(video, swapped) == (Similarity(1, 1),) * 2
    kite_found, man_found = judge_expressions(video, swapped)
    assert kite_found.j == man_found.j == 0
    _, given = RefDavis(folder, "annot1", task="semi-supervised")
    assert judge_as_published(given, swapped)[1].j == 0


def test_published_evaluation_gives_a_shared_pixel_to_the_first_object(folder: Path) -> None:
    _, video = RefDavis(folder, "annot1", task="semi-supervised")
    everything = [np.ones((2, HEIGHT, WIDTH), bool) for _ in range(FRAMES)]
    first, second = judge_as_published(video, everything)
    assert first.j == pytest.approx(8 * 10 / (HEIGHT * WIDTH) / 2)
    assert second.j == 0
    assert judge_expressions(video, everything)[1].j == pytest.approx(13 * 20 / (HEIGHT * WIDTH))


def test_published_evaluation_needs_one_expression_an_object(folder: Path) -> None:
    _, video = RefDavis(folder, "annot1_full_video")
    with pytest.raises(ValueError, match="kite-surf has several expressions"):
        judge_as_published(video, right(video))
    clip, _ = RefDavis(folder, "annot1")
    for wrong in (np.zeros((1, 3, 3), bool), np.zeros((1, HEIGHT, WIDTH))):
        with pytest.raises(ValueError, match="mask is of"):
            judge_as_published(clip, [wrong] * FRAMES)


def test_object_without_an_expression_counts_in_the_published_evaluation_alone(
    folder: Path,
) -> None:
    file = folder / "davis_text_annotations/Davis17_annot1.txt"
    file.write_text('classic-car 1 "car"\nkite-surf 2 "man"\n')
    _, video = RefDavis(folder, "annot1")
    assert judge_expressions(video, right(video)) == (Similarity(1, 1),)
    assert judge_as_published(video, right(video)) == (Similarity(0.25, 0.25), Similarity(1, 1))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("kite-surf 1", "is not a sequence, an object's number from 1 and an expression"),
        ('kite-surf one "a kite"', "'kite-surf one \"a kite\"' is not a sequence"),
        ('kite-surf 0 "a kite"', "object's number from 1"),
        ('kite-surf -1 "a kite"', "object's number from 1"),
        ('kite-surf 1 ""', "the expression is empty"),
        ('kite-surf 1 " "', "the expression is empty"),
        ('kite-surv 1 "a kite"', "no list in ImageSets/2017 has 'kite-surv'; train.txt"),
        ('kite-surf 3 "a bird"', "object 3 of kite-surf is beyond the 2 objects"),
    ],
)
def test_broken_line_is_told_with_file_and_number(folder: Path, line: str, told: str) -> None:
    file = folder / "davis_text_annotations/Davis17_annot1.txt"
    file.write_text(TEXTS["annot1"] + "\n" + line + "\n")
    with pytest.raises(DataError) as error:
        RefDavis(folder, "annot1")
    assert f"{file}, line 6: " in str(error.value)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "missing",
    [
        "DAVIS/JPEGImages/480p",
        "DAVIS/Annotations_unsupervised/480p",
        "DAVIS/ImageSets/2017",
        "DAVIS/ImageSets/2017/val.txt",
        "davis_text_annotations/Davis17_annot1.txt",
        "DAVIS/JPEGImages/480p/kite-surf/00001.jpg",
        "DAVIS/Annotations_unsupervised/480p/kite-surf/00001.png",
    ],
)
def test_what_is_missing_is_named(folder: Path, missing: str) -> None:
    path = folder / missing
    path.rename(folder / "elsewhere")
    with pytest.raises(DataError, match=r"missing|no frame 00001; the other folder has it") as told:
        RefDavis(folder, "annot1")
    name = path.name if path.suffix in (".txt", "") else path.parent.name
    assert name in str(told.value)


def test_sequence_without_expressions_or_frames_is_named(folder: Path) -> None:
    file = folder / "DAVIS/ImageSets/2017/val.txt"
    file.write_text("bear\n")
    (file.parent / "test-dev.txt").write_text("classic-car\nkite-surf\n")
    with pytest.raises(DataError, match="no expression about bear"):
        RefDavis(folder, "annot2")
    with pytest.raises(DataError, match="bear has 0 frames; want at least 1"):
        RefDavis(folder, "annot1")


def test_truth_that_is_no_picture_of_numbers_or_of_another_size_is_refused(folder: Path) -> None:
    file = folder / "DAVIS/Annotations_unsupervised/480p/kite-surf/00001.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(file)
    _, video = RefDavis(folder, "annot1")
    with pytest.raises(DataError, match=r"00001\.png holds colours \(RGB\)"):
        list(video.truth())
    Image.new("L", (HEIGHT, WIDTH)).save(file)
    with pytest.raises(DataError, match=r"00001\.png has 31 x 53 pixels; its video has 53 x 31"):
        list(video.truth())
    file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"00001\.png cannot be read"):
        list(video.truth())


def test_frame_of_another_size_is_refused(folder: Path) -> None:
    file = folder / "DAVIS/JPEGImages/480p/kite-surf/00002.jpg"
    Image.new("RGB", (WIDTH, 8)).save(file)
    _, video = RefDavis(folder, "annot1")
    with pytest.raises(DataError, match="53 x 8 pixels; the first frame has 53 x 31"):
        list(video.pictures())


def test_first_mask_without_a_number_is_refused(folder: Path) -> None:
    file = folder / "DAVIS/Annotations_unsupervised/480p/kite-surf/00000.png"
    save_labels(file, np.where(kite(0) > 0, 255, 0).astype(np.uint8), "L")  # as DAVIS 2016 has them
    with pytest.raises(DataError, match=r"00000\.png has no object; numbers from 1"):
        RefDavis(folder, "annot1")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_few_colours_are_read_as_numbers(tmp_path: Path, bits: int) -> None:
    labels = (np.arange(HEIGHT * WIDTH) % min(2**bits, 4)).astype(np.uint8).reshape(HEIGHT, WIDTH)
    picture = Image.fromarray(labels)
    picture.putpalette(FEW)
    picture.save(tmp_path / "labels.png", bits=bits)
    assert np.array_equal(read_labels(tmp_path / "labels.png"), labels)


def test_unknown_annotator_and_task_are_refused(folder: Path) -> None:
    wrong: Any = "annot3"
    with pytest.raises(OptionsError, match="annotator='annot3'; allowed: annot1, annot1_full"):
        RefDavis(folder, wrong)
    with pytest.raises(OptionsError, match="task='annot3'; allowed: unsupervised, semi-super"):
        RefDavis(folder, "annot1", task=wrong)
