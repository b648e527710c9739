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
from weakref import WeakMethod, WeakValueDictionary

import cachetools
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
from vllm.utils.cache import CacheInfo

from vllm_litelvlm.plugin.served import is_ours
from vllm_litelvlm.plugin.wrap import wrap

#: Of the engine's cache. Between looking an image up and sending its request others may be sent, so
#: the front end counts on a little less.
_BELIEVED = 7 / 8


class SentCache(LruKeyReplicatedSenderCache):
    """Names of the images that the engine has, in the order in which it was last sent them.

    Looking a name up does not make it younger: the engine hears of it only when it is sent.
    """

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__(model_config)
        size = model_config.get_multimodal_config().mm_processor_cache_gb
        kind = MultiModalProcessorCacheItemMetadata
        self._cache = MultiModalCache.get_lru_cache(size * _BELIEVED, kind)
        # Images of requests on their way, which keep them alive. They carry what to write down.
        self._waiting: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._held: dict[str, Any] = {}
        self._sent: deque[tuple[str, MultiModalProcessorCacheItemMetadata | None]] = deque()
        self._total = CacheInfo(hits=0, total=0)
        self._told = CacheInfo(hits=0, total=0)

    def sent(self, images: Sequence[tuple[str, Any]]) -> None:
        """The engine was sent these: names, and images where they went along.

        May be called in any thread.
        """
        for name, image in images:
            waiting = self._waiting.get(name)
            if image is None or name in self._cache:
                self._sent.append((name, None))
            elif waiting is not None and waiting is image:
                self._sent.append((name, waiting.litelvlm_metadata))
            else:  # it went past this cache, and takes room in the engine's all the same
                metadata = MultiModalProcessorCacheItemMetadata(image, [])
                self._sent.append((f"past {name}", metadata))

    @override
    def is_cached(self, mm_hashes: list[str]) -> list[bool]:
        while self._sent:
            name, metadata = self._sent.popleft()
            if metadata is None:
                self._cache.touch(name)
            else:
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
        is_hit = mm_hash in self._cache
        self._total = CacheInfo(self._total.hits + is_hit, self._total.total + 1)
        if is_hit:
            return None, cachetools.Cache.__getitem__(self._cache, mm_hash).prompt_updates
        if mm_item is None:
            image = self._held[mm_hash]
            return image, image.litelvlm_metadata.prompt_updates
        self._waiting[mm_hash] = image = mm_item[0]
        image.litelvlm_metadata = MultiModalProcessorCacheItemMetadata(*mm_item)
        return mm_item

    @override
    def touch_sender_cache_item(self, mm_hash: str) -> None:
        """Nothing: :meth:`sent` does."""

    @override
    def release_sender_touches(self) -> None:
        self._held.clear()

    @override
    def make_stats(self, *, delta: bool = False) -> CacheInfo:
        if not delta:
            return self._total
        since, self._told = self._total - self._told, self._total
        return since

    @override
    def clear_cache(self) -> None:
        super().clear_cache()
        self._waiting.clear()
        self._sent.clear()


def install() -> None:
    """Give vLLM's engines this cache in place of the one that it betters. Idempotent."""
    wrap("vllm.renderers.base", "processor_cache_from_config", _better)
    wrap("vllm.v1.engine.async_llm", "AsyncLLM.__init__", _tell_async)
    wrap("vllm.v1.engine.llm_engine", "LLMEngine.__init__", _tell)


def _better(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Take vLLM's default cache's place where the model is ours."""

    @functools.wraps(stock)
    def processor_cache_from_config(config: Any) -> Any:
        cache = stock(config)
        if type(cache) is LruKeyReplicatedSenderCache and is_ours(config):
            return SentCache(config.model_config)
        return cache

    return processor_cache_from_config


def _tell(stock: Callable[..., None]) -> Callable[..., None]:
    """Tell the cache what an engine's requests have with them, once they are sent."""

    @functools.wraps(stock)
    def init(engine: Any, *args: Any, **kwargs: Any) -> None:
        stock(engine, *args, **kwargs)
        cache, add = engine.renderer.mm_processor_cache, WeakMethod(engine.engine_core.add_request)
        if not isinstance(cache, SentCache):
            return

        def add_request(request: Any) -> None:
            images = _images(request.mm_features)
            add()(request)  # type: ignore[misc]
            cache.sent(images)

        engine.engine_core.add_request = add_request

    return init


def _tell_async(stock: Callable[..., None]) -> Callable[..., None]:
    """The same for ``vllm serve``."""

    @functools.wraps(stock)
    def init(engine: Any, *args: Any, **kwargs: Any) -> None:
        stock(engine, *args, **kwargs)
        core = engine.engine_core
        cache, add = engine.renderer.mm_processor_cache, WeakMethod(core.add_request_async)
        if not isinstance(cache, SentCache):
            return

        async def add_request_async(request: Any) -> None:
            images = _images(request.mm_features)
            await add()(request)  # type: ignore[misc]
            cache.sent(images)

        core.add_request_async = add_request_async

    return init


def _images(features: Sequence[MultiModalFeatureSpec] | None) -> list[tuple[str, Any]]:
    """A request's images by name, None for those that it only names."""
    return [(one.mm_hash or one.identifier, one.data) for one in features or ()]
