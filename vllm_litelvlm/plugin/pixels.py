"""Preprocessed images in the front end, so that another text about an image reuses them.

vLLM's own cache of processed inputs knows an image together with the request's options, and so
with its text: under another text it would have the same image preprocessed again.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.hasher import MultiModalHasher

from vllm_litelvlm.plugin.metrics import count_pixels


def image_key(algorithm: Any, **what: object) -> bytes:
    """A digest of an image and of whatever else its pixels depend on."""
    return bytes.fromhex(MultiModalHasher.hash_kwargs(algorithm, **what))


class PixelCache:
    """Pixel values by image key; the least recently used go first.

    Args:
        max_bytes: what all pixel values together may take; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._pixels: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, keys: Sequence[bytes], preprocess: Callable[[list[int]], Tensor]) -> list[Tensor]:
        """Pixel values of every image, [3, side, side] each.

        ``preprocess`` is given places in ``keys`` and returns their pixels, [images, 3, side,
        side].
        """
        there = {key: self._pixels[key] for key in keys if key in self._pixels}
        missing = {key: place for place, key in enumerate(keys) if key not in there}
        count_pixels(len(keys), sum(key in there for key in keys))
        if missing:
            fresh = preprocess(list(missing.values()))
            there |= dict(zip(missing, fresh, strict=True))
        for key in dict.fromkeys(keys):
            self._keep(key, there[key])
        return [there[key] for key in keys]

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
