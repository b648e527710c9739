"""What the front end believes that the engine has."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import torch
from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
)

from vllm_litelvlm.plugin.sent import SentCache, _better, _tell

KIB = 2**10


def model_config(kib: float) -> Any:
    size = SimpleNamespace(mm_processor_cache_gb=kib / 2**20)
    return SimpleNamespace(get_multimodal_config=lambda: size)


def cache(kib: float) -> SentCache:
    return SentCache(model_config(kib))


def image(kib: float = 1) -> MultiModalKwargsItem:
    data = torch.zeros(int(kib * KIB), dtype=torch.uint8)
    field = MultiModalFieldElem(data=data, field=MultiModalBatchedField())
    return MultiModalKwargsItem({"pixel_values": field})


def process(kept: SentCache, name: str, made: MultiModalKwargsItem | None = None) -> Any:
    """What vLLM does with one image; what goes to the engine."""
    [cached] = kept.is_cached([name])
    kept.touch_sender_cache_item(name)
    found, _ = kept.get_and_update_item(None if cached else (made or image(), []), name)
    kept.release_sender_touches()
    return found


def test_image_goes_with_every_request_until_one_was_sent() -> None:
    kept = cache(64)
    first = process(kept, "a")
    assert first is not None
    assert process(kept, "a") is first  # not processed again
    kept.sent([("a", first)])
    assert process(kept, "a") is None


def test_image_of_a_request_that_ended_is_forgotten() -> None:
    kept = cache(64)
    process(kept, "a")
    gc.collect()
    assert kept.is_cached(["a"]) == [False]
    assert process(kept, "a") is not None


def test_image_that_was_found_outlives_the_request_that_had_it() -> None:
    """Until this one is through; its image was not processed."""
    kept = cache(64)
    first = process(kept, "a")
    assert kept.is_cached(["a"]) == [True]
    del first
    gc.collect()
    found, _ = kept.get_and_update_item(None, "a")
    assert found is not None


def test_what_another_engine_was_sent_is_not_believed() -> None:
    kept = cache(64)
    first = process(kept, "a")
    kept.sent([("a", image())])
    assert process(kept, "a") is first


def test_sent_image_is_remembered_when_it_is_gone() -> None:
    kept = cache(64)
    first = process(kept, "a")
    kept.sent([("a", first)])
    del first
    gc.collect()
    assert process(kept, "a") is None


def test_nothing_is_believed_once_cleared() -> None:
    kept = cache(64)
    first, second = process(kept, "a"), process(kept, "b")
    kept.sent([("a", first)])
    kept.clear_cache()
    kept.sent([("b", second)])
    assert kept.is_cached(["a", "b"]) == [False, False]


def test_looking_a_name_up_does_not_make_it_younger() -> None:
    """The engine hears of a request that is counted or refused as little as of its image."""
    kept = cache(8)
    kept.sent([("a", process(kept, "a"))])
    for name in "bcdefgh":
        assert process(kept, "a") is None  # never sent
        kept.sent([(name, process(kept, name))])
    assert kept.is_cached(["a"]) == [False]
    assert kept.make_stats(delta=True) == (7, 15)
    assert kept.make_stats(delta=True) == (0, 0)


def test_sending_a_name_makes_it_younger() -> None:
    kept = cache(8)
    kept.sent([("a", process(kept, "a"))])
    for name in "bcdefgh":
        kept.sent([("a", process(kept, "a"))])
        kept.sent([(name, process(kept, name))])
    assert kept.is_cached(["a", "b", "c"]) == [True, False, True]


def test_what_goes_past_the_cache_takes_room_in_the_engines() -> None:
    kept = cache(8)
    kept.sent([("a", process(kept, "a"))])
    kept.sent([(f"other {number}", image()) for number in range(7)])
    assert kept.is_cached(["a", "other 6"]) == [False, False]


def test_image_that_is_sent_twice_takes_room_once() -> None:
    kept = cache(8)
    first = process(kept, "a")
    second = process(kept, "a")  # on its way before the first was sent
    kept.sent([("a", first)])
    assert kept.is_cached(["a"]) == [True]
    kept.sent([("a", second)])
    for name in "bcdefg":
        kept.sent([(name, process(kept, name))])
    assert kept.is_cached(["a", "g"]) == [True, True]


class _Core:
    """An engine's core, of which a process of its own would hang."""

    def add_request(self, request: Any) -> None:
        self.last = request


def test_engine_is_freed_with_its_last_name() -> None:
    kept = cache(64)

    def stock(engine: Any) -> None:
        engine.renderer, engine.engine_core = SimpleNamespace(mm_processor_cache=kept), _Core()

    engine = SimpleNamespace()
    _tell(stock)(engine)
    made = process(kept, "a")
    feature = SimpleNamespace(mm_hash="a", identifier="a", data=made)
    engine.engine_core.add_request(SimpleNamespace(mm_features=[feature]))
    assert process(kept, "a") is None
    freed = weakref.ref(engine.engine_core)
    gc.disable()
    try:
        del engine
        assert freed() is None
    finally:
        gc.enable()


def test_cache_takes_the_place_of_vllms_default_for_our_models_alone() -> None:
    stock = LruKeyReplicatedSenderCache(model_config(8))
    for architecture, better in (("LlavaForConditionalGeneration", True), ("Other", False)):
        model = model_config(8)
        model.architectures = [architecture]
        found = _better(lambda config: stock)(SimpleNamespace(model_config=model))
        assert isinstance(found, SentCache) is better
    assert _better(lambda config: None)(SimpleNamespace(model_config=None)) is None


def test_less_is_believed_than_the_engine_holds() -> None:
    """Eight images fill the engine's cache; the front end counts on seven."""
    kept = cache(8)
    for name in "abcdefgh":
        made = process(kept, name)
        kept.sent([(name, made)])
    assert kept.is_cached(list("abcdefgh")) == [False, *[True] * 7]
