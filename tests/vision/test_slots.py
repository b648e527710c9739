"""Rows that are kept by key, and what is computed when."""

import random
from collections.abc import Hashable

import pytest
import torch

from vllm_litelvlm.vision.slots import Rows, SlotCache, recall


def cache_of(slots: int) -> SlotCache:
    return SlotCache(slots, {"square": ((2,), torch.float32)})


class Computer:
    """Gives each key a row of its own, and notes which were asked for."""

    def __init__(self, keys: list[int]) -> None:
        self.keys, self.computed = keys, list[int]()

    def __call__(self, places: list[int]) -> Rows:
        found = [self.keys[place] for place in places]
        self.computed += found
        rows = torch.tensor([[key, key**2] for key in found], dtype=torch.float32)
        return {"square": rows, "extra": rows + 1}


def ask(cache: SlotCache | None, *keys: int) -> list[int]:
    """Recall ``keys``, check every row, and tell which had to be computed."""
    computer = Computer(list(keys))
    rows = recall(keys, computer, cache)
    expected = torch.tensor([[key, key**2] for key in keys], dtype=torch.float32)
    assert torch.equal(rows["square"], expected)
    if len(computer.computed) == len(set(keys)):  # nothing was kept, so the extra name is whole
        assert torch.equal(rows["extra"], expected + 1)
    return computer.computed


def test_equal_keys_of_one_call_are_computed_once_without_a_cache() -> None:
    assert ask(None, 3, 1, 3, 3, 2, 1) == [3, 1, 2]
    assert ask(None, 3) == [3]


def test_kept_keys_are_not_computed_again_and_the_order_is_that_of_the_call() -> None:
    cache = cache_of(4)
    assert ask(cache, 1, 2) == [1, 2]
    assert ask(cache, 5, 2, 1, 5) == [5]
    assert ask(cache, 1, 2, 5) == []
    assert (cache.queries, cache.hits, len(cache)) == (2 + 3 + 3, 2 + 3, 3)


def test_least_recently_used_goes_first() -> None:
    cache = cache_of(2)
    ask(cache, 1, 2)
    ask(cache, 1)
    assert ask(cache, 3) == [3]
    assert ask(cache, 1) == []
    assert ask(cache, 2) == [2]
    assert ask(cache, 3) == [3]


def test_call_of_more_keys_than_slots_is_answered_and_keeps_the_last() -> None:
    cache = cache_of(2)
    assert ask(cache, 1, 2, 3, 4, 5) == [1, 2, 3, 4, 5]
    assert ask(cache, 4, 5) == []
    assert ask(cache, 9, 4, 8, 5, 7) == [9, 8, 7]  # what is read goes before what is written
    assert len(cache) == 2


def test_random_calls_give_what_computing_all_gives() -> None:
    generator, cache = random.Random(0), cache_of(7)
    computed = 0
    for _ in range(300):
        computed += len(
            ask(cache, *(generator.randrange(12) for _ in range(generator.randint(1, 9))))
        )
        assert len(cache) <= 7
    assert 0 < computed < 300 * 5


def test_nothing_that_is_read_or_written_shares_memory_with_the_cache() -> None:
    cache = cache_of(2)
    given = torch.ones(1, 2)
    cache.write(["a"], {"square": given})
    given.zero_()
    [slot] = cache.find(["a"])
    assert slot is not None
    read = cache.read([slot])["square"]
    assert torch.equal(read, torch.ones(1, 2))
    read.zero_()
    assert torch.equal(cache.read([slot])["square"], torch.ones(1, 2))


def test_memory_is_there_from_the_start_and_never_grows() -> None:
    cache = SlotCache(3, {"a": ((4, 5), torch.bfloat16), "b": ((6,), torch.float32)})
    sizes = {name: memory.nbytes for name, memory in cache.memory.items()}
    assert sum(sizes.values()) == 3 * cache.slot_bytes == 3 * (4 * 5 * 2 + 6 * 4)
    pointers = {name: memory.data_ptr() for name, memory in cache.memory.items()}
    for number in range(10):
        rows = {"a": torch.randn(1, 4, 5, dtype=torch.bfloat16), "b": torch.randn(1, 6)}
        cache.write([number], rows)
    assert {name: memory.data_ptr() for name, memory in cache.memory.items()} == pointers


@pytest.mark.parametrize("key", [b"bytes", ("a", 1), 5])
def test_cleared_cache_knows_no_key(key: Hashable) -> None:
    cache = cache_of(2)
    cache.write([key], {"square": torch.ones(1, 2)})
    cache.clear()
    assert cache.find([key]) == [None]
    assert len(cache) == 0
