"""Images that come again are not decoded again.

vLLM decodes every image of a request before anything looks whether it is known. Here an encoded
image is hashed first, once for all that want to know it by its bytes; where its pixels are still
kept, Pillow decodes it only if someone looks at it after all.
"""

import functools
import io
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from PIL import ExifTags
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.image import open_image
from vllm.multimodal.media import MediaWithBytes

from vllm_litelvlm.plugin.pixels import PixelCache
from vllm_litelvlm.plugin.wrap import wrap

#: Those of this process's processors.
_caches: WeakSet[PixelCache] = WeakSet()


def install() -> None:
    """Wrap vLLM's decoding of images. Idempotent."""
    wrap("vllm.multimodal.media.image", "ImageMediaIO.load_bytes", _look_first)


def look_in(cache: PixelCache) -> None:
    """Ask a cache about encoded images from now on, as long as it lives."""
    _caches.add(cache)


def _look_first(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def load_bytes(media_io: Any, data: bytes) -> Any:
        caches = list(_caches)
        if not caches:
            return stock(media_io, data)
        digest = MultiModalHasher.hash_kwargs(caches[0].algorithm, data=data, io=vars(media_io))
        known = any(cache.has_encoded(digest) for cache in caches)
        image = _undecoded(media_io, data) if known else None
        if image is None:
            image = stock(media_io, data)
        image.litelvlm_digest = digest
        return image

    return load_bytes


def _undecoded(media_io: Any, data: bytes) -> Any:
    """An image that Pillow is yet to decode; None where vLLM would turn or convert it too."""
    image = open_image(io.BytesIO(data))
    if media_io.image_mode not in (None, image.mode):
        return None
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1  # a PNG is decoded for it
    return MediaWithBytes(image, data) if upright else None
