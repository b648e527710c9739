"""Images that come again are not decoded again.

vLLM decodes every image of a request before anything looks whether it is known, and copies it once
more to turn it upright. Here an encoded image is hashed first, once for all that want to know it by
its bytes; where its pixels are still kept, Pillow decodes it only if someone looks at it after all
(a PNG always, as it may say at its end how it stands), and one that stands upright is not copied.
Whatever is unusual about an image is left to vLLM.
"""

import functools
import io
from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakSet

from PIL import ExifTags, Image
from vllm import envs
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.image import open_image
from vllm.multimodal.media import MediaWithBytes

from vllm_litelvlm.plugin.pixels import PixelCache
from vllm_litelvlm.plugin.wrap import wrap

#: Those that are sent most. Their mode is known before they are decoded.
_FORMATS = ("JPEG", "PNG", "WEBP")
#: Where vLLM 0.33 counts the bytes that a request's media come to, and refuses too many.
_BUDGET = "decoded_budget"
#: Those of this process's processors.
_caches: WeakSet[PixelCache] = WeakSet()
_lock = Lock()


def install() -> None:
    """Wrap vLLM's decoding of images. Idempotent."""
    wrap("vllm.multimodal.media.image", "ImageMediaIO.load_bytes", _look_first)


def look_in(cache: PixelCache) -> None:
    """Ask a cache about encoded images from now on, as long as it lives."""
    with _lock:
        _caches.add(cache)


def _look_first(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def load_bytes(media_io: Any, data: bytes) -> Any:
        with _lock:
            caches = list(_caches)
        if not caches:
            return stock(media_io, data)
        read = {name: it for name, it in vars(media_io).items() if name != _BUDGET}
        digest = MultiModalHasher.hash_kwargs(caches[0].algorithm, data=data, io=read)
        known = any(cache.has_encoded(digest) for cache in caches)
        try:
            image = _plain(media_io, data, decode=not known)
        except Exception:  # vLLM says what is wrong, or makes the best of it
            return stock(media_io, data)
        if image is None:
            decoded = stock(media_io, data)
        else:
            budget = getattr(media_io, _BUDGET, None)
            if budget is not None:
                budget.charge(image.width * image.height * 4)
            decoded = MediaWithBytes(image, data)
        decoded.litelvlm_digest = digest
        return decoded

    return load_bytes


def _plain(media_io: Any, data: bytes, decode: bool) -> Image.Image | None:
    """An image of which vLLM would do nothing but decode it; None for all others."""
    image: Image.Image = open_image(io.BytesIO(data))
    most = envs.VLLM_MAX_IMAGE_PIXELS
    too_large = 0 < most < image.width * image.height
    if too_large or image.format not in _FORMATS or image.mode != media_io.image_mode:
        return None
    if image.format == "PNG":  # it may say behind its pixels how it stands
        image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    if decode:
        image.load()
    return image
