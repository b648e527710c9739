"""Images in the front end, preprocessed once, so that another text about an image reuses them.

vLLM's own cache of processed inputs knows an image together with the request's options, and so
with its text: under another text it would have the same image preprocessed again.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor
from vllm.multimodal.media import MediaWithBytes

from vllm_litelvlm.plugin.metrics import count_pixels
from vllm_litelvlm.pruning.window import Window
from vllm_litelvlm.vision.frame import as_image, padded, window

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
        grid: patches a side.
    """

    def __init__(
        self,
        image: object,
        name: str | None,
        digest: Callable[..., str],
        kept: "PixelCache",
        padding: Sequence[float] | None = None,
        grid: int = 1,
    ) -> None:
        self._image = image.media if isinstance(image, MediaWithBytes) else image
        self._padding, self._given = padding, image
        self._digest = digest if padding is None else partial(digest, padding=list(padding))
        self.name = None if name is None else self._digest(name=name)
        named = image is None and self.name is not None
        self._known = kept.key_of(self.name) if named else None
        #: The patches that show it, where padding is all that others show.
        self.window = kept.window_of(self.name) if named else None
        if padding is not None and self._image is not None:
            self.window = window(as_image(self._image).size, grid)

    @cached_property
    def key(self) -> bytes:
        """Pictures of equal keys have equal pixels."""
        return self._known or bytes.fromhex(self._digest(image=self._given))

    @property
    def identity(self) -> str:
        """What vLLM's caches know the picture by: its name, or its pixels."""
        return f"pixels {self.key.hex()}" if self.name is None else f"name {self.name}"

    @property
    def is_missing(self) -> bool:
        """Whether neither the image nor its pixels are there."""
        return self._image is None and self._known is None

    @property
    def image(self) -> object:
        """What is to be preprocessed."""
        return self._image if self._padding is None else padded(self._image, self._padding)


class PixelCache:
    """Pixel values by picture; the least recently used go first.

    Args:
        max_bytes: what all pixel values together may take; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._pixels: OrderedDict[bytes, Tensor] = OrderedDict()
        self._names: OrderedDict[str | None, tuple[bytes | None, Window | None]] = OrderedDict()

    def get(
        self, pictures: Sequence[Picture], preprocess: Callable[[list[int]], Tensor]
    ) -> list[Tensor]:
        """Pixel values of every picture, [3, side, side] each.

        ``preprocess`` is given places in ``pictures`` and returns their pixels, [images, 3, side,
        side].
        """
        keys = [picture.key for picture in pictures]
        there = {key: self._pixels[key] for key in keys if key in self._pixels}
        missing = {key: place for place, key in enumerate(keys) if key not in there}
        count_pixels(len(keys), sum(key in there for key in keys))
        if missing:
            fresh = preprocess(list(missing.values()))
            there |= dict(zip(missing, fresh, strict=True))
        for key in dict.fromkeys(keys):
            self._keep(key, there[key])
        for picture in pictures:
            if picture.name is not None:
                self._names[picture.name] = picture.key, picture.window
                self._names.move_to_end(picture.name)
                if len(self._names) > _NAMES:
                    self._names.popitem(last=False)
        return [there[key] for key in keys]

    def key_of(self, name: str | None) -> bytes | None:
        """The key of the picture that last had a name, if its pixels are still there."""
        key, _ = self._names.get(name, (None, None))
        return key if key in self._pixels else None

    def window_of(self, name: str | None) -> Window | None:
        """The window of the picture that last had a name: vLLM may still have its pixels."""
        _, found = self._names.get(name, (None, None))
        return found

    def clear(self) -> None:
        """Forget all pixels and names."""
        self._pixels.clear()
        self._names.clear()
        self._bytes = 0

    def _keep(self, key: bytes, pixels: Tensor) -> None:
        if key in self._pixels:
            self._pixels.move_to_end(key)
            return
        size = pixels.numel() * pixels.element_size()
        if size > self._max_bytes:
            return
        self._pixels[key] = pixels.clone()  # not a view of a whole batch
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, oldest = self._pixels.popitem(last=False)
            self._bytes -= oldest.numel() * oldest.element_size()


def as_field(key: bytes) -> Tensor:
    """A key as vLLM carries it to the worker, uint8 [bytes]."""
    return torch.frombuffer(bytearray(key), dtype=torch.uint8)
