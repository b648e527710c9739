"""The cache of images of any size: what is read is what was written, within its memory."""

import random
from collections import OrderedDict

import pytest
import torch

from vllm_litelvlm.vision.pages import PAGE, PageCache
from vllm_litelvlm.vision.slots import Row

ROWS: dict[str, Row] = {"features": ((6,), torch.bfloat16), "score": ((), torch.float32)}
PAGE_BYTES = PAGE * (6 * 2 + 4)


def image(tokens: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "features": torch.randn(tokens, 6, generator=generator).bfloat16(),
        "score": torch.randn(tokens, generator=generator),
        "another": torch.zeros(tokens),
    }


@pytest.mark.parametrize("seed", range(20))
def test_images_of_any_size_are_kept_as_the_textbook_says(seed: int) -> None:
    draw, pages = random.Random(seed), 10
    cache = PageCache(pages * PAGE_BYTES + 17, ROWS)
    sizes = {key: draw.choice([1, 5, PAGE - 1, PAGE, PAGE + 1, 200, 700]) for key in range(12)}
    kept: OrderedDict[int, int] = OrderedDict()
    for _ in range(200):
        key = draw.randrange(12)
        count = -(-sizes[key] // PAGE)
        found = cache.read(key)
        assert (found is not None) == (key in kept)
        if found is None:
            cache.write(key, image(sizes[key], key))
            if count <= pages:
                while sum(kept.values()) + count > pages:
                    kept.popitem(last=False)
                kept[key] = count
        else:
            kept.move_to_end(key)
            expected = image(sizes[key], key)
            assert set(found) == set(ROWS)
            for name, rows in found.items():
                assert torch.equal(rows, expected[name])
        assert {one for one in sizes if one in cache} == set(kept)
        assert cache.bytes == sum(kept.values()) * PAGE_BYTES
    assert cache.queries == 200
    cache.clear()
    assert (cache.bytes, cache.queries, cache.hits) == (0, 0, 0)
    cache.write(0, image(pages * PAGE, 0))
    assert 0 in cache


def test_what_was_read_stays_when_its_place_is_given_away() -> None:
    cache = PageCache(PAGE_BYTES, ROWS)
    cache.write("a", image(3, 1))
    found = cache.read("a")
    assert found is not None
    cache.write("b", image(PAGE, 2))
    assert torch.equal(found["features"], image(3, 1)["features"])
    assert "a" not in cache


def test_cache_without_room_keeps_nothing() -> None:
    cache = PageCache(PAGE_BYTES - 1, ROWS)
    cache.write("a", image(1, 1))
    assert "a" not in cache
    assert cache.read("a") is None
