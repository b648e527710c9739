"""What the front end believes that the engine has."""

import gc
from types import SimpleNamespace
from typing import Any

import torch
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
)

from vllm_litelvlm.plugin.sent import SentCache

KIB = 2**10


def cache(kib: float) -> SentCache:
    size = SimpleNamespace(mm_processor_cache_gb=kib / 2**20)
    model: Any = SimpleNamespace(get_multimodal_config=lambda: size)
    return SentCache(model)


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


def test_less_is_believed_than_the_engine_holds() -> None:
    """Eight images fill the engine's cache; the front end counts on seven."""
    kept = cache(8)
    for name in "abcdefgh":
        made = process(kept, name)
        kept.sent([(name, made)])
    assert kept.is_cached(list("abcdefgh")) == [False, *[True] * 7]
