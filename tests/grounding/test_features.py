"""Features are kept within bytes, and a picture is encoded once whoever asks for it."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from vllm_litelvlm.grounding.features import FeatureCache


class Encoder:
    """Encodes a number as four bytes of it for each of some elements, and notes which it did."""

    def __init__(self, elements: int = 4) -> None:
        self.elements, self.encoded = elements, list[int]()

    def ask(self, cache: FeatureCache, *keys: int) -> list[int]:
        """Ask for keys, check what comes, and tell which had to be encoded."""
        before = len(self.encoded)
        for key in keys:
            features = cache.get(key, lambda key=key: self(key))
            assert torch.equal(features, torch.full((self.elements,), float(key)))
        return self.encoded[before:]

    def __call__(self, key: int) -> Tensor:
        self.encoded.append(key)
        return torch.full((self.elements,), float(key))


def test_least_recently_used_goes_first_and_everything_is_counted() -> None:
    cache, encoder = FeatureCache(max_bytes=2 * 16 + 15), Encoder()
    assert encoder.ask(cache, 1, 2, 1) == [1, 2]
    assert encoder.ask(cache, 3) == [3]
    assert encoder.ask(cache, 1, 3) == []
    assert encoder.ask(cache, 2) == [2]
    assert (cache.queries, cache.hits, len(cache), cache.bytes) == (7, 3, 2, 32)
    cache.clear()
    assert (cache.queries, cache.hits, len(cache), cache.bytes) == (0, 0, 0, 0)
    assert encoder.ask(cache, 2) == [2]


def test_picture_larger_than_the_bound_is_not_kept_and_drops_nothing() -> None:
    cache, small, large = FeatureCache(max_bytes=40), Encoder(4), Encoder(11)
    small.ask(cache, 1, 2)
    assert large.ask(cache, 9, 9) == [9, 9]
    assert small.ask(cache, 1, 2) == []
    assert Encoder().ask(FeatureCache(max_bytes=0), 5, 5) == [5, 5]


def test_view_counts_as_the_memory_that_it_keeps() -> None:
    cache = FeatureCache(max_bytes=1000)
    cache.get(1, lambda: torch.zeros(200)[:2])
    assert cache.bytes == 800


def test_random_queries_stay_within_the_bound() -> None:
    cache, generator = FeatureCache(max_bytes=200), random.Random(0)
    for _ in range(500):
        key = generator.randrange(20)
        Encoder(elements=key + 1).ask(cache, key)
        assert cache.bytes <= 200
        assert cache.bytes == sum(4 * (key + 1) for key in range(20) if key in cache)
    assert 0 < cache.hits < cache.queries == 500


def test_picture_that_many_threads_ask_for_is_encoded_once() -> None:
    cache, encoder, entered = FeatureCache(), Encoder(), threading.Event()
    leave = threading.Event()

    def encode() -> Tensor:
        entered.set()
        assert leave.wait(30)
        return encoder(7)

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cache.get, 7, encode)
        assert entered.wait(30)
        others = [pool.submit(cache.get, 7, lambda: encoder(7)) for _ in range(6)]
        # Another picture does not wait for it.
        assert encoder.ask(cache, 8) == [8]
        assert not any(each.done() for each in (first, *others))
        leave.set()
        found = [each.result(30) for each in (first, *others)]
    assert all(each is found[0] for each in found)
    assert encoder.encoded == [8, 7]
    assert (cache.queries, cache.hits) == (8, 6)


def test_failure_to_encode_is_raised_to_all_that_wait_and_not_kept() -> None:
    cache, entered, leave = FeatureCache(), threading.Event(), threading.Event()

    def fail() -> Tensor:
        entered.set()
        assert leave.wait(30)
        raise MemoryError("no room")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, 7, fail)
        assert entered.wait(30)
        second = pool.submit(cache.get, 7, lambda: torch.zeros(1))
        while cache.queries < 2:
            pass
        leave.set()
        for each in (first, second):
            with pytest.raises(MemoryError, match="no room"):
                each.result(30)
    assert (cache.hits, len(cache)) == (0, 0)
    assert Encoder().ask(cache, 7) == [7]


def test_many_threads_and_pictures_give_what_one_gives() -> None:
    cache, encoder = FeatureCache(max_bytes=5 * 16), Encoder()

    def ask(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(200):
            encoder.ask(cache, generator.randrange(9))

    with ThreadPoolExecutor(6) as pool:
        for each in [pool.submit(ask, seed) for seed in range(6)]:
            each.result(60)
    assert cache.queries == 1200
    assert cache.hits == 1200 - len(encoder.encoded)
    assert (len(cache), cache.bytes) == (5, 80)
