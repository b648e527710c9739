"""The soak's predictions and summaries; tests/e2e/test_caches.py holds the caches themselves."""

from typing import Any

import pytest

from benchmarks.soak import Request, draw, growth, predicted_hits, table


def about(*images: int) -> list[Request]:
    return [Request(image, f"{number}", 64) for number, image in enumerate(images)]


@pytest.mark.parametrize(
    ("images", "places", "hits"),
    [((1, 1, 1), 1, 2), ((1, 2, 1, 2), 1, 0), ((1, 2, 1, 3, 1, 2), 2, 2), ((1, 2, 3, 1), 3, 1)],
)
def test_hits_are_those_of_a_least_recently_used_cache(
    images: tuple[int, ...], places: int, hits: int
) -> None:
    assert predicted_hits(about(*images), places) == hits


def test_requests_are_all_different_reproducible_and_favour_some_images() -> None:
    requests = draw(2000, 300, seed=3)
    assert requests == draw(2000, 300, seed=3)
    assert requests != draw(2000, 300, seed=4)
    assert len({request.question for request in requests}) == 2000
    asked = [request.image for request in requests]
    assert asked.count(0) > 10 * asked.count(100)
    assert set(asked) <= set(range(300))
    assert len(set(asked)) > 200


def test_growth_leaves_out_the_first_half() -> None:
    flat = [(number, 100.0 if number >= 5 else 10.0 * number) for number in range(11)]
    assert growth(flat) == 0
    leaking = [(number, 10.0 * number) for number in range(11)]
    assert growth(leaking) == pytest.approx(95 - 50)


def test_table_shows_both_runs_beside_the_prediction() -> None:
    memory = [(0, 10.0), (1, 20.0), (2, 20.5)]
    result: dict[str, Any] = {
        "requests": 2,
        "images": 1,
        "predicted_image_hits": 1,
        "hits": {
            "small caches": {"feature": 1.0, "pixel": 1.0},
            "no caches": {"feature": 0.0, "pixel": 0.0},
        },
        "memory_mib": {"small caches": memory, "no caches": memory},
        "different_answers": 0,
        "largest_logprob_gap": 2e-6,
    }
    shown = table(result)
    assert "| image feature hits | 1 | 0 |" in shown
    assert "| growth in the second half, MiB | +0.5 | +0.5 |" in shown
    assert "predicts 1 image hits. 0 answers differ" in shown
