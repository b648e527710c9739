"""vLLM's cache of processed images in the front end, of what its engine was really sent.

The engine keeps the images that it gets, and the front end their names, so that an image is sent
once. Stock vLLM (0.32, 0.33) writes a name down as soon as an image is processed. Where its request
ends before it is sent (a refusal, tokens that were only counted, a client that gave up), or another
overtakes it, the next request with that image goes without it and is answered with 500. Here a name
is written down once its image was sent; until then the image goes with every request.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from typing_extensions import override
from vllm.config import ModelConfig
from vllm.multimodal.cache.base import (
    MultiModalCache,
    MultiModalProcessorCacheInItem,
    MultiModalProcessorCacheItemMetadata,
    MultiModalProcessorCacheOutItem,
)
from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_litelvlm.plugin.served import is_ours
from vllm_litelvlm.plugin.wrap import wrap

#: Of the engine's cache. It drops what was sent or asked for longest ago, and requests may come to
#: it in another order than they were processed in, so the front end counts on a little less.
_BELIEVED = 7 / 8


class SentCache(LruKeyReplicatedSenderCache):
    """Names of the images that the engine has.

    All but :meth:`sent` is called in the one thread that processes images.
    """

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        size = model_config.get_multimodal_config().mm_processor_cache_gb
        kind = MultiModalProcessorCacheItemMetadata
        self._cache = MultiModalCache.get_lru_cache(size * _BELIEVED, kind)
        # Images of requests on their way, which keep them alive. They carry what to write down.
        self._waiting: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._held: dict[str, Any] = {}
        self._sent: deque[tuple[str, MultiModalProcessorCacheItemMetadata]] = deque()

    def sent(self, images: Sequence[tuple[str, Any]]) -> None:
        """The engine has these images, by name. May be called in any thread."""
        for name, image in images:
            waiting = self._waiting.get(name)
            if waiting is not None and waiting is image:
                self._sent.append((name, waiting.litelvlm_metadata))

    @override
    def is_cached(self, mm_hashes: list[str]) -> list[bool]:
        while self._sent:
            name, metadata = self._sent.popleft()
            self._waiting.pop(name, None)
            self.cache_if_fits(self._cache, name, metadata)
        return [self.is_cached_item(name) for name in mm_hashes]

    @override
    def is_cached_item(self, mm_hash: str) -> bool:
        waiting = self._waiting.get(mm_hash)
        if waiting is not None:
            self._held[mm_hash] = waiting
        return mm_hash in self._cache or waiting is not None

    @override
    def get_and_update_item(
        self, mm_item: MultiModalProcessorCacheInItem, mm_hash: str
    ) -> MultiModalProcessorCacheOutItem:
        if mm_hash in self._cache:
            return super().get_and_update_item(None, mm_hash)
        if mm_item is None:
            image = self._held[mm_hash]
            return image, image.litelvlm_metadata.prompt_updates
        self._waiting[mm_hash] = image = mm_item[0]
        image.litelvlm_metadata = MultiModalProcessorCacheItemMetadata(*mm_item)
        return mm_item

    @override
    def release_sender_touches(self) -> None:
        self._held.clear()

    @override
    def clear_cache(self) -> None:
        super().clear_cache()
        self._waiting.clear()
        self._sent.clear()


def install() -> None:
    """Give vLLM's engines this cache in place of the one that it betters. Idempotent."""
    wrap("vllm.v1.engine.async_llm", "AsyncLLM.__init__", _follow_async)
    wrap("vllm.v1.engine.llm_engine", "LLMEngine.__init__", _follow)


def _follow(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def init(engine: Any, *args: Any, **kwargs: Any) -> None:
        stock(engine, *args, **kwargs)
        cache, add = _replaced(engine.renderer), engine.engine_core.add_request
        if cache is None:
            return

        def add_request(request: Any) -> None:
            images = _images(request.mm_features)
            add(request)
            cache.sent(images)

        engine.engine_core.add_request = add_request

    return init


def _follow_async(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def init(engine: Any, *args: Any, **kwargs: Any) -> None:
        stock(engine, *args, **kwargs)
        cache, add = _replaced(engine.renderer), engine.engine_core.add_request_async
        if cache is None:
            return

        async def add_request_async(request: Any) -> None:
            images = _images(request.mm_features)
            await add(request)
            cache.sent(images)

        engine.engine_core.add_request_async = add_request_async

    return init


def _replaced(renderer: Any) -> SentCache | None:
    """A renderer's cache from now on, if its model is ours and it had vLLM's default cache."""
    stock = renderer.mm_processor_cache
    if not is_ours(renderer) or type(stock) is not LruKeyReplicatedSenderCache:
        return None
    renderer._mm_processor_cache = cache = SentCache(renderer.model_config)
    return cache


def _images(features: Sequence[MultiModalFeatureSpec] | None) -> list[tuple[str, Any]]:
    """What a request has with it, by name."""
    return [
        (one.mm_hash or one.identifier, one.data) for one in features or () if one.data is not None
    ]
