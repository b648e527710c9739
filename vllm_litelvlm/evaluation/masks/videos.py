"""What data sets of videos consist of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vllm_litelvlm.evaluation.refer_files import DataError


@dataclass(frozen=True)
class VideoExpression:
    """A text that refers to something in a video.

    ``number`` is its name in its video. ``target`` is the number of the object that is meant;
    None where that is not told.
    """

    number: str
    text: str
    target: int | None = None


@dataclass(frozen=True)
class Video:
    """A video as pictures in files, and the expressions about it.

    ``frames`` are the names of the pictures without ending, in order; all pictures have one size.
    """

    name: str
    folder: Path
    frames: tuple[str, ...]
    expressions: tuple[VideoExpression, ...]

    def frame_file(self, frame: str) -> Path:
        """Where the picture of a frame lies."""
        return self.folder / f"{frame}.jpg"

    def pictures(self) -> Iterator[Image.Image]:
        """The frames, RGB, each read when it is asked for.

        Raises DataError where one is missing, broken, or of another size than the first.
        """
        size: tuple[int, int] | None = None
        for frame in self.frames:
            file = self.frame_file(frame)
            picture = open_picture(file).convert("RGB")
            size = size or picture.size
            if picture.size != size:
                raise DataError(
                    f"{file} has {picture.width} x {picture.height} pixels; "
                    f"the first frame has {size[0]} x {size[1]}."
                )
            yield picture

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, of the first frame."""
        return next(self.pictures()).size


def open_picture(file: Path) -> Image.Image:
    """A picture as its file has it, read. Raises DataError where it is missing or broken."""
    try:
        with Image.open(file) as opened:
            opened.load()
            return opened
    except FileNotFoundError:
        raise DataError(f"{file} is missing.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}.") from None


def read_lines(file: Path) -> list[str]:
    """The lines of a text file without their ends, UTF-8 or else Latin-1.

    Ref-DAVIS17's second annotator wrote Latin-1. Raises DataError where the file is missing.
    """
    if not file.is_file():
        raise DataError(f"{file} is missing.")
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return [line.removesuffix("\r") for line in text.split("\n")]
