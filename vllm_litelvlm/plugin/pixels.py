"""Images in the front end, preprocessed once, so that another text about an image reuses them.

vLLM's own cache of processed inputs knows an image together with the request's options, and so
with its text: under another text it would have the same image preprocessed again.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

from torch import Tensor
from vllm.multimodal.media import MediaWithBytes

from vllm_litelvlm.plugin.metrics import count_pixels
from vllm_litelvlm.pruning.window import Window
from vllm_litelvlm.vision.frame import padded, size, window

#: What a picture is to a model: a tensor, or several things by name.
Pixels = Tensor | Mapping[str, Any]
#: How many of the names that clients gave to images are remembered.
_NAMES = 16_384


class Picture:
    """An image of a request, hashed no more than once, whatever its digest is needed for.

    Args:
        image: as the request has it; None where only its name was sent.
        name: what the client calls it, if anything.
        digest: hashes what is given together with all else that pixels depend on.
        kept: where pixels may be, under what was sent with the name before.
        padding: the colour to pad to a square with, RGB from 0 to 1; None where it is cropped.
        grid: patches a side; the tower leaves out what is no whole one.
        modality: "image" or "video".
        arguments: of the request for its preprocessing.
        frames: of a video, as it is to be preprocessed; ``image`` is then what it is known by.
    """

    def __init__(
        self,
        image: Any,
        name: str | None,
        digest: Callable[..., str],
        kept: "PixelCache",
        padding: Sequence[float] | None = None,
        grid: int | Fraction = 1,
        modality: str = "image",
        arguments: Mapping[str, object] | None = None,
        frames: Any = None,
    ) -> None:
        self.modality, self.arguments = modality, arguments or {}
        self._given, self._frames, self._padding = image, frames, padding
        self._digest = digest if padding is None else partial(digest, padding=list(padding))
        self.name = None if name is None else self._digest(name=name)
        named = image is None and self.name is not None
        #: The key of what had its name before, be its pixels there or not.
        self.named = kept.key_named(self.name) if named else None
        #: What was made of it, once it was: it stays, whatever the cache drops meanwhile.
        self.made: Pixels | None = None if self.named is None else kept.pixels_of(self.named)
        self._known = None if self.made is None else self.named
        self._known_size = kept.size_of(self.name) if named else None
        self._grid = grid

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height; None where only a name was sent that nobody knows."""
        return self._known_size if self._given is None else size(self._plain)

    @property
    def window(self) -> Window | None:
        """The patches that show it, where padding is all that others show."""
        if self._padding is None or self.size is None:
            return None
        return window(self.size, self._grid)

    @property
    def encoded(self) -> str | None:
        """The digest of its bytes as they were sent, if it came encoded."""
        return vars(self._given).get("litelvlm_digest") if self._came_encoded else None

    @cached_property
    def key(self) -> bytes:
        """Pictures of equal keys have equal pixels."""
        if self._known is not None:
            return self._known
        return bytes.fromhex(self._digest(**{self.modality: self.encoded or self._given}))

    @property
    def identity(self) -> str:
        """What vLLM's caches know the picture by: its name, or its pixels."""
        return f"pixels {self.key.hex()}" if self.name is None else f"name {self.name}"

    @property
    def is_missing(self) -> bool:
        """Whether neither the image nor its pixels are there."""
        return self._given is None and self._known is None

    @property
    def image(self) -> object:
        """What is to be preprocessed."""
        return self._plain if self._padding is None else padded(self._plain, self._padding)

    @property
    def _plain(self) -> Any:
        if self.modality == "video":
            return self._frames
        return self._given.media if self._came_encoded else self._given

    @property
    def _came_encoded(self) -> bool:
        return isinstance(self._given, MediaWithBytes)


@dataclass(frozen=True)
class _Kept:
    """``encoded`` as :attr:`Picture.encoded`."""

    pixels: Pixels
    encoded: str | None


@dataclass(frozen=True)
class _Named:
    """What a picture's name stood for last."""

    key: bytes
    size: tuple[int, int] | None


class PixelCache:
    """Pixels by picture; the least recently used go first. They are kept as they are sent.

    Args:
        max_bytes: what all pixels together may take; 0 keeps none.
        algorithm: what vLLM hashes images with.
    """

    def __init__(self, max_bytes: int, algorithm: str = "blake3") -> None:
        self.algorithm = algorithm
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._encoded: set[str] = set()
        self._names: OrderedDict[str | None, _Named] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(
        self, pictures: Sequence[Picture], preprocess: Callable[[Picture], Pixels]
    ) -> list[Any]:
        """Pixels of every picture; ``preprocess`` makes those that are not kept."""
        keys = [picture.key for picture in pictures]
        there = {key: self._kept[key].pixels for key in keys if key in self._kept}
        count_pixels(len(keys), sum(key in there for key in keys))
        for picture in pictures:
            if picture.key not in there:
                there[picture.key] = preprocess(picture)
            self._keep(picture, there[picture.key])
        return [there[key] for key in keys]

    def has_encoded(self, digest: str) -> bool:
        """Whether the pixels of an encoded image are kept. Any thread may ask."""
        return digest in self._encoded

    def pixels_of(self, key: bytes) -> Pixels | None:
        """What is kept under a key."""
        kept = self._kept.get(key)
        return None if kept is None else kept.pixels

    def key_named(self, name: str | None) -> bytes | None:
        """The key of the picture that last had a name."""
        named = self._names.get(name)
        return None if named is None else named.key

    def size_of(self, name: str | None) -> tuple[int, int] | None:
        """The size of the picture that last had a name: vLLM may still have its pixels."""
        named = self._names.get(name)
        return None if named is None else named.size

    def clear(self) -> None:
        """Forget all pixels and names."""
        self._kept.clear()
        self._encoded.clear()
        self._names.clear()
        self._bytes = 0

    def _keep(self, picture: Picture, pixels: Pixels) -> None:
        if picture.name is not None:
            size = picture.size if picture.modality == "image" else None
            self._names[picture.name] = _Named(picture.key, size)
            self._names.move_to_end(picture.name)
            if len(self._names) > _NAMES:
                self._names.popitem(last=False)
        if picture.key in self._kept:
            self._kept.move_to_end(picture.key)
        elif _nbytes(pixels) <= self._max_bytes:
            self._kept[picture.key] = _Kept(pixels, picture.encoded)
            self._bytes += _nbytes(pixels)
            if picture.encoded is not None:
                self._encoded.add(picture.encoded)
            while self._bytes > self._max_bytes:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, oldest = self._kept.popitem(last=False)
        self._bytes -= _nbytes(oldest.pixels)
        if oldest.encoded is not None:
            self._encoded.discard(oldest.encoded)


def _nbytes(pixels: Any) -> int:
    if isinstance(pixels, Mapping):
        return sum(map(_nbytes, pixels.values()))
    return pixels.nbytes if isinstance(pixels, Tensor) else 0
