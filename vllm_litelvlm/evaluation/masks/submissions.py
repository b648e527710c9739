"""MeViS and Refer-YouTube-VOS, whose validation masks only their servers know."""

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.masks.videos import Video, VideoExpression
from vllm_litelvlm.evaluation.refer_files import DataError

#: What videos, expressions and frames may be called; the names become those of files.
_NAME = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark's files lie.

    ``expressions`` and ``pictures`` are paths in the data folder; ``without``, where there is such
    a file, has videos that are left out. ``top`` is the folder in the archive that the videos'
    folders lie in; "" for none. Its masks are grey PNGs of 0 and 255.
    """

    name: str
    expressions: str
    pictures: str
    without: str | None
    top: str


#: As MeViS' README has it: "directly packages 140 val video folders".
MEVIS = Benchmark(
    name="mevis",
    expressions="valid/meta_expressions.json",
    pictures="valid/JPEGImages",
    without=None,
    top="",
)
#: As published, and packed as ReferFormer packs it. The validation file lists the 305 videos of the
#: test as well, which ReferFormer leaves out by the test's own file; 202 remain.
REFER_YOUTUBE_VOS = Benchmark(
    name="refer-youtube-vos",
    expressions="meta_expressions/valid/meta_expressions.json",
    pictures="valid/JPEGImages",
    without="meta_expressions/test/meta_expressions.json",
    top="Annotations",
)
BENCHMARKS: Mapping[str, Benchmark] = {one.name: one for one in (MEVIS, REFER_YOUTUBE_VOS)}


class ServerDataset:
    """The videos of a benchmark's validation split, by name; pictures are read when asked for.

    Raises DataError for a file that is missing or not in the benchmark's format, and OptionsError
    for a benchmark that is not known.
    """

    def __init__(self, folder: Path, name: str) -> None:
        if name not in BENCHMARKS:
            raise OptionsError(f"benchmark {name!r}; allowed: {', '.join(BENCHMARKS)}")
        self.benchmark = BENCHMARKS[name]
        self.name, self.split = name, "val"
        described = _read_videos(folder / self.benchmark.expressions)
        left_out: Mapping[str, Any] = {}
        if self.benchmark.without and (folder / self.benchmark.without).is_file():
            left_out = _read_videos(folder / self.benchmark.without)
        pictures = folder / self.benchmark.pictures
        if not pictures.is_dir():
            raise DataError(f"{pictures} is missing: it should hold a folder a video.")
        self.videos = tuple(
            _video(folder / self.benchmark.expressions, name, described[name], pictures)
            for name in sorted(described.keys() - left_out.keys())
        )

    def __len__(self) -> int:
        return len(self.videos)

    def __iter__(self) -> Iterator[Video]:
        return iter(self.videos)


def _read_videos(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise DataError(f"{file} is missing.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}.") from None
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise DataError(f'{file} has no "videos" by name.')
    return videos


def _video(file: Path, name: str, described: Any, pictures: Path) -> Video:
    try:
        frames = tuple(_plain(frame) for frame in described["frames"])
        expressions = tuple(
            VideoExpression(_plain(number), " ".join(str(one["exp"]).split()))
            for number, one in described["expressions"].items()
        )
        _plain(name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: video {name!r} is not described as it should be "
            f"({type(error).__name__}: {error})."
        ) from None
    for what, some in (("frames", frames), ("expressions", expressions)):
        if not some:
            raise DataError(f"{file}: video {name!r} has no {what}.")
    if not (pictures / name).is_dir():
        raise DataError(
            f"{pictures / name} is missing, of which {file} has expressions. Where that file lists "
            "the test's videos too, as Refer-YouTube-VOS' does, put the test's own beside it."
        )
    return Video(name, pictures / name, frames, expressions)


def _plain(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of letters, digits, dots, dashes and underlines")
    return name


class Submission:
    """Predicted masks in a folder, ``VIDEO/EXPRESSION/FRAME.png``, and an archive of them.

    Each mask is written at once and as a whole, so that a run can be taken up again: what is there
    is not asked for anew.

    Args:
        folder: for the masks; made where it is missing.
        dataset: what is to be predicted.
    """

    def __init__(self, folder: Path, dataset: ServerDataset) -> None:
        self._folder = folder
        self._dataset = dataset

    def file(self, video: Video, expression: VideoExpression, frame: str) -> Path:
        """Where the mask of a frame lies, or is to lie."""
        return self._folder / video.name / expression.number / f"{frame}.png"

    def has(self, video: Video, expression: VideoExpression) -> bool:
        """Whether the masks of all frames are there."""
        return all(self.file(video, expression, frame).is_file() for frame in video.frames)

    def write(
        self,
        video: Video,
        expression: VideoExpression,
        frame: str,
        mask: NDArray[np.bool_],
    ) -> None:
        """Write the mask of a frame, bool [height, width], of the frame's own size.

        Raises ValueError for another type or size or a frame that the video does not have.
        """
        if frame not in video.frames:
            raise ValueError(f"{video.name} has no frame {frame!r}.")
        with Image.open(video.frame_file(frame)) as picture:
            size = picture.size
        if mask.dtype != np.bool_ or mask.shape != size[::-1]:
            raise ValueError(
                f"The mask of {video.name}, frame {frame}, is {mask.dtype} {list(mask.shape)}; "
                f"want bool {list(size[::-1])}."
            )
        file = self.file(video, expression, frame)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        Image.fromarray(mask.astype(np.uint8) * 255).save(unfinished, "PNG")
        unfinished.replace(file)

    def missing(self) -> Iterator[Path]:
        """The masks that are not there yet."""
        return (file for file in self._files() if not file.is_file())

    def pack(self, archive: Path, progress: Callable[[int, int], None] | None = None) -> Path:
        """Write the archive that the server takes; files beside the wanted ones are left out.

        Args:
            archive: a ``.zip``; an older one is replaced, once the new one is whole.
            progress: is told the masks that are in it and all of them, after each.

        Raises DataError where masks are missing.
        """
        missing = next(self.missing(), None)
        if missing is not None:
            count = sum(1 for _ in self.missing())
            raise DataError(f"{count} masks are missing, the first is {missing}.")
        files: Sequence[Path] = list(self._files())
        archive.parent.mkdir(parents=True, exist_ok=True)
        unfinished = archive.with_name(f"{archive.name}.part")
        # PNGs are compressed already.
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as opened:
            for done, file in enumerate(files, 1):
                inside = file.relative_to(self._folder).as_posix()
                opened.write(file, "/".join(filter(None, (self._dataset.benchmark.top, inside))))
                if progress is not None:
                    progress(done, len(files))
        unfinished.replace(archive)
        return archive

    def _files(self) -> Iterator[Path]:
        for video in self._dataset:
            for expression in video.expressions:
                for frame in video.frames:
                    yield self.file(video, expression, frame)
