"""DAVIS 2017 with the expressions of Ref-DAVIS17."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.masks.boundary import Mask
from vllm_litelvlm.evaluation.masks.videos import (
    Video,
    VideoExpression,
    open_picture,
    read_lines,
)
from vllm_litelvlm.evaluation.refer_files import DataError

#: Two annotators, who saw the first frame, or the full video.
Annotator = Literal["annot1", "annot1_full_video", "annot2", "annot2_full_video"]
ANNOTATORS: tuple[Annotator, ...] = get_args(Annotator)

#: The two tasks of davis2017-evaluation, with the folder of the right masks of each.
Task = Literal["unsupervised", "semi-supervised"]
_TRUTH: Mapping[Task, str] = {
    "unsupervised": "Annotations_unsupervised",
    "semi-supervised": "Annotations",
}

#: The label of pixels that do not count.
VOID = 255

#: How the published text files misspell sequences (as ReferFormer's conversion mends them).
_MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_QUOTED = re.compile(r'(["“”\'])(.*)(["“”\'])', re.DOTALL)


@dataclass(frozen=True, eq=False)
class TruthFrame:
    """The right masks of a frame: ``masks`` bool [objects, height, width], ``void`` of a mask.

    ``void`` pixels do not count; there are none in the task "semi-supervised", whose evaluation
    takes them for background.
    """

    masks: Mask
    void: Mask


@dataclass(frozen=True)
class DavisVideo(Video):
    """A sequence. Its ``objects`` are numbered from 1, in every frame the same."""

    truth_folder: Path
    task: Task
    objects: int

    @property
    def judged(self) -> range:
        """The places of the frames that are judged.

        All in the task "unsupervised", by which Ref-DAVIS17 is judged: nothing was given. In
        "semi-supervised" the first frame is given, and the first and the last do not count.
        """
        count = len(self.frames)
        return range(1, count - 1) if self.task == "semi-supervised" else range(count)

    def truth(self) -> Iterator[TruthFrame]:
        """The right masks of all frames, each read when it is asked for.

        Raises DataError for a file that is missing, that is no picture of numbers, or that has
        another size than its frame.
        """
        size = self.size()
        for frame in self.frames:
            file = self.truth_folder / f"{frame}.png"
            labels = read_labels(file)
            if labels.shape != size[::-1]:
                raise DataError(
                    f"{file} has {labels.shape[1]} x {labels.shape[0]} pixels; "
                    f"its video has {size[0]} x {size[1]}."
                )
            masks = labels == np.arange(1, self.objects + 1)[:, None, None]
            counts = self.task == "unsupervised"
            yield TruthFrame(masks, (labels == VOID) & counts)


class RefDavis:
    """A split of DAVIS 2017 with one annotator's expressions; frames are read when asked for.

    The files lie as they are published: ``JPEGImages/480p/SEQUENCE/00000.jpg``, right masks as PNGs
    of object numbers (with a palette or grey) in ``Annotations_unsupervised/480p`` or
    ``Annotations/480p``, ``ImageSets/2017/val.txt``, and
    ``davis_text_annotations/Davis17_ANNOTATOR.txt`` beside these folders or beside ``DAVIS`` with
    these folders. A line of that file is a sequence, an object's number and a quoted expression.

    Args:
        folder: the data folder, or its ``DAVIS``.
        annotator: whose expressions; a figure of Ref-DAVIS17 is the mean over all four.
        split: ``val``, ``train``, or another list in ``ImageSets/2017``.
        task: how it is judged; VideoGLaMM and others judge Ref-DAVIS17 as "unsupervised".
        resolution: the folder below ``JPEGImages``.

    Raises DataError for files that are missing or broken, with the line, and OptionsError for an
    annotator or a task that does not exist.
    """

    def __init__(
        self,
        folder: Path,
        annotator: Annotator,
        split: str = "val",
        *,
        task: Task = "unsupervised",
        resolution: str = "480p",
    ) -> None:
        for name, value, allowed in (
            ("annotator", annotator, ANNOTATORS),
            ("task", task, tuple(_TRUTH)),
        ):
            if value not in allowed:
                raise OptionsError(f"{name}={value!r}; allowed: {', '.join(allowed)}")
        self.name = "ref-davis17"
        self.split, self.annotator, self.task = split, annotator, task
        root = folder / "DAVIS" if (folder / "DAVIS").is_dir() else folder
        self._pictures = _existing(root / "JPEGImages" / resolution)
        self._truth = _existing(
            root / _TRUTH[task] / resolution, f'It has the right masks of the task "{task}".'
        )
        lists = _existing(root / "ImageSets/2017")
        known = {line.strip() for file in lists.glob("*.txt") for line in read_lines(file)} - {""}
        own = [line.strip() for line in read_lines(lists / f"{split}.txt")]
        sequences = tuple(filter(None, own))
        self._texts = _find_texts(root, f"Davis17_{annotator}.txt")
        self._expressions = read_expressions(self._texts, known)
        self.videos = tuple(map(self._video, sequences))

    def __len__(self) -> int:
        return len(self.videos)

    def __iter__(self) -> Iterator[DavisVideo]:
        return iter(self.videos)

    def _video(self, sequence: str) -> DavisVideo:
        if sequence not in self._expressions:
            raise DataError(f"{self._texts} has no expression about {sequence}.")
        frames = tuple(sorted(file.stem for file in (self._pictures / sequence).glob("*.jpg")))
        masks = {file.stem for file in (self._truth / sequence).glob("*.png")}
        least = 3 if self.task == "semi-supervised" else 1
        if len(frames) < least:
            raise DataError(
                f"{self._pictures / sequence} has {len(frames)} frames; want at least {least}."
            )
        if masks != set(frames):
            [frame, *_] = sorted(masks ^ set(frames))
            folder = self._pictures if frame in masks else self._truth
            raise DataError(f"{folder / sequence} has no frame {frame}; the other folder has it.")
        objects = count_objects(self._truth / sequence / f"{frames[0]}.png")
        lines = self._expressions[sequence]
        for number, one in lines.items():
            if one.target is None or one.target > objects:
                raise DataError(
                    f"{self._texts}, line {number}: object {one.target} of {sequence} is beyond "
                    f"the {objects} objects of its first mask, so it would not be judged."
                )
        return DavisVideo(
            name=sequence,
            folder=self._pictures / sequence,
            frames=frames,
            expressions=tuple(sorted(lines.values(), key=lambda one: one.target or 0)),
            truth_folder=self._truth / sequence,
            task=self.task,
            objects=objects,
        )


def read_expressions(file: Path, known: set[str]) -> dict[str, dict[int, VideoExpression]]:
    """The expressions of each sequence by the number of their line.

    An expression stands in quotes, and quotes inside it are its own; runs of spaces become one, as
    in the published readers. Expressions are numbered by their line.

    Args:
        known: every sequence that there is.

    Raises DataError for a missing file, and for a line that is not understood, with its number.
    """
    found: dict[str, dict[int, VideoExpression]] = {}
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        fields = line.split(maxsplit=2)
        if len(fields) < 3 or not fields[1].isdecimal() or int(fields[1]) < 1:
            raise DataError(
                f"{file}, line {number}: {line!r} is not a sequence, an object's number from 1 "
                "and an expression in quotes."
            )
        sequence = _MISSPELT.get(fields[0], fields[0])
        if sequence not in known:
            raise DataError(
                f"{file}, line {number}: no list in ImageSets/2017 has {fields[0]!r}; train.txt "
                "and val.txt should both be there."
            )
        text = " ".join(fields[2].split())
        quoted = _QUOTED.fullmatch(text)
        text = quoted[2].strip() if quoted else text
        if not text.strip("\"“”'"):
            raise DataError(f"{file}, line {number}: the expression is empty.")
        one = VideoExpression(str(number), text, int(fields[1]))
        found.setdefault(sequence, {})[number] = one
    return found


def read_labels(file: Path) -> NDArray[np.uint8]:
    """The object numbers of a mask, uint8 [height, width], from a PNG with a palette or a grey one.

    Raises DataError for a file that is missing or that holds colours.
    """
    picture = open_picture(file)
    if picture.mode not in ("P", "L", "1"):
        raise DataError(
            f"{file} holds colours ({picture.mode}); a PNG of object numbers is wanted, with a "
            "palette or grey."
        )
    return np.asarray(picture).astype(np.uint8)


def count_objects(file: Path) -> int:
    """The largest object number in a sequence's first mask, as davis2017-evaluation counts.

    Raises DataError where there is none.
    """
    labels = read_labels(file)
    count = int(labels[labels != VOID].max(initial=0))
    if not count:
        raise DataError(
            f"{file} has no object; numbers from 1 are wanted, and {VOID} marks pixels that do "
            "not count."
        )
    return count


def _find_texts(root: Path, name: str) -> Path:
    places = [one / "davis_text_annotations" / name for one in (root, root.parent)]
    for file in places:
        if file.is_file():
            return file
    raise DataError(f"{places[0]} is missing, and {places[1]} too.")


def _existing(folder: Path, why: str = "") -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing. {why}".rstrip())
    return folder
