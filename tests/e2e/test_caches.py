"""What the caches spare the worker and the front end, and that they change no answer."""

import json
import os
import random
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from openai import BadRequestError
from PIL import Image

from tests.e2e.client import Answer, ask, user_turn
from tests.e2e.conftest import ARGUMENTS
from tests.e2e.runners import Runner, on_v1_alone
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.server import ServerError, serve

#: Of the tiny checkpoint: 577 x 64 features and 576 context scores in float32, and 3 x 336 x 336
#: pixels, a byte each.
IMAGE_BYTES, PIXEL_BYTES = 4 * (577 * 64 + 576), 3 * 336 * 336
SLOTS, TEXTS = 3, 2
SMALL = {
    "feature_cache_gb": (SLOTS + 0.5) * IMAGE_BYTES / 2**30,
    "pixel_cache_gb": (SLOTS + 0.5) * PIXEL_BYTES / 2**30,
    "text_cache": TEXTS,
}
NONE = {"feature_cache_gb": 0, "pixel_cache_gb": 0, "text_cache": 0}


class Counts:
    """How often each cache was asked since the last look, and how often it had the answer."""

    NAMES = ("feature", "pixel", "text")

    def __init__(self, url: str) -> None:
        self._url, self._before = url, [0.0] * 6
        self.new()

    def value(self, name: str) -> float:
        for line in httpx.get(f"{self._url}/metrics", timeout=30).text.splitlines():
            if line.startswith((f"{name} ", f"{name}{{")):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def new(self) -> dict[str, tuple[float, float]]:
        """Cache to queries and hits."""
        now = [
            self.value(f"litelvlm_{name}_cache_{what}_total")
            for name in self.NAMES
            for what in ("queries", "hits")
        ]
        grown = [after - before for after, before in zip(now, self._before, strict=True)]
        self._before = now
        return {name: (grown[2 * n], grown[2 * n + 1]) for n, name in enumerate(self.NAMES)}


class Lru:
    """The textbook's, to predict hits with."""

    def __init__(self, places: int) -> None:
        self._places, self._kept = places, OrderedDict[Any, None]()

    def hit(self, key: Any) -> bool:
        there = key in self._kept
        self._kept[key] = None
        self._kept.move_to_end(key)
        if len(self._kept) > self._places:
            self._kept.popitem(last=False)
        return there


def alike(one: Answer, other: Answer) -> bool:
    """Equal, but for what different blocks and batches do to the last digits."""
    return one.token_ids == other.token_ids and one.logprobs == pytest.approx(
        other.logprobs, abs=1e-3
    )


@pytest.fixture(scope="module")
def start(
    runner: Runner, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    def with_options(options: dict[str, Any]) -> Any:
        return serve(
            checkpoint.llava,
            clip_model=checkpoint.clip,
            options=options,
            arguments=ARGUMENTS,
            environment=runner.environment,
            log=tmp_path_factory.mktemp("caches") / "server.log",
        )

    return with_options


@pytest.fixture(scope="module")
def pictures(photographs: Sequence[Image.Image]) -> list[Image.Image]:
    """Seven different images."""
    turned = [photographs[0].rotate(90), photographs[1].rotate(90), photographs[2].rotate(180)]
    return [*photographs, *turned]


@pytest.fixture(scope="module")
def conversation() -> list[tuple[int, str, dict[str, Any]]]:
    """Image, text and options of 60 requests, of which no two are alike."""
    generator = random.Random(5)
    asked = []
    for number in range(60):
        image = generator.choice([0, 0, 1, 2, 3, 4, 5, 6])
        options: dict[str, Any] = {"budget": generator.choice([29, 64, 128])}
        if number % 5 == 3:
            options |= generator.choice([{"method": "trim"}, {"method": "random", "seed": number}])
        if number % 5 == 4:  # reads no text, so it needs something else to be like no other
            options |= {"method": "prumerge+", "share": number / 100}
        asked.append((image, f"Look {number}.", options))
    return asked


@on_v1_alone
def test_small_caches_are_hit_as_predicted_and_change_no_answer(
    start: Callable[..., Any],
    pictures: list[Image.Image],
    conversation: list[tuple[int, str, dict[str, Any]]],
) -> None:
    def send(url: str, image: int, text: str, options: dict[str, Any]) -> Answer:
        return ask(url, user_turn(text, pictures[image]), options, 6)

    with start(SMALL) as running:
        counts, features, pixels = Counts(running.url), Lru(SLOTS), Lru(SLOTS)
        answers, expected = [], {"feature": [0, 0], "pixel": [0, 0]}
        for image, text, options in conversation:
            answers.append(send(running.url, image, text, options))
            for name, cache in (("feature", features), ("pixel", pixels)):
                expected[name][0] += 1
                expected[name][1] += cache.hit(image)
        found = counts.new()
        assert list(found["feature"]) == expected["feature"]
        assert list(found["pixel"]) == expected["pixel"]
        assert 0 < expected["feature"][1] < len(conversation)
        assert counts.value("litelvlm_feature_cache_bytes") == SLOTS * IMAGE_BYTES
    with start(NONE) as running:
        counts = Counts(running.url)
        without = [send(running.url, *one) for one in conversation]
        assert counts.new() == {
            "feature": (0, 0),
            "pixel": (len(conversation), 0),
            "text": (0, 0),
        }
    for one, cached, plain in zip(conversation, answers, without, strict=True):
        assert alike(cached, plain), one


def test_second_text_about_an_image_is_preprocessed_encoded_and_embedded_only_where_new(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    image = photographs[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # nobody else's
    counts = Counts(server.url)
    ask(server.url, user_turn("A first text.", image), {"budget": 64}, 1)
    assert counts.new() == {"feature": (1, 0), "pixel": (1, 0), "text": (1, 0)}
    ask(server.url, user_turn("A second text.", image), {"budget": 64}, 1)
    assert counts.new() == {"feature": (1, 1), "pixel": (1, 1), "text": (1, 0)}
    ask(server.url, user_turn("A first text.", image), {"budget": 65}, 1)
    assert counts.new() == {"feature": (1, 1), "pixel": (1, 1), "text": (1, 1)}
    # vLLM's own caches know this one.
    ask(server.url, user_turn("A first text.", image), {"budget": 65}, 1)
    assert counts.new() == {"feature": (0, 0), "pixel": (0, 0), "text": (0, 0)}


def test_same_pixels_under_two_client_given_uuids_are_one_image(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    image = photographs[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    counts, answers = Counts(server.url), []
    for uuid in ("one", "two"):
        turn = user_turn("Where is the cup?", image)
        turn["content"][0]["uuid"] = uuid
        answers.append(ask(server.url, turn, {"budget": 64}, 4))
    assert counts.new() == {"feature": (2, 1), "pixel": (2, 1), "text": (2, 1)}
    assert answers[0].token_ids == answers[1].token_ids


@on_v1_alone
def test_picture_that_is_only_named_is_answered_as_long_as_its_pixels_are_there(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    image = photographs[2].transpose(Image.Transpose.FLIP_TOP_BOTTOM)

    def named(text: str, *, sent: bool) -> dict[str, Any]:
        turn = user_turn(text, image)
        turn["content"][0]["uuid"] = "a picture"
        if not sent:
            turn["content"][0]["image_url"] = None
        return turn

    with pytest.raises(BadRequestError, match="data is not provided"):
        ask(server.url, named("Where is the cup?", sent=False), {"budget": 64}, 1)
    ask(server.url, named("Where is the cup?", sent=True), {"budget": 64}, 1)
    for question in ("Where is the cup?", "Where is the dog?"):
        for options in ({"budget": 64}, {"budget": 64, "method": "fovea", "focus": 0.25}):
            whole = ask(server.url, user_turn(question, image), options, 4)
            assert alike(ask(server.url, named(question, sent=False), options, 4), whole)


# V2 samples from uninitialised memory in its profile; where that is NaN, the interpreter raises.
@on_v1_alone
def test_memory_profile_sees_as_many_images_as_a_step_holds_and_every_method(
    runner: Runner, checkpoint: Checkpoint
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.e2e.profile_run",
            str(checkpoint.llava),
            str(checkpoint.clip),
        ],
        env={**os.environ, **runner.environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    [images] = found["images_seen"]
    assert images == 4096 // 576
    # DivPrune looks at all tokens behind the projector; then come the kept ones.
    assert found["projected"] == [[images, 576, 64], [images * 576, 64]]
    assert (found["kept"], found["queries"]) == (0, 0)
    assert found["cache_bytes"] == 2**29 // IMAGE_BYTES * IMAGE_BYTES
    # Then fifteen requests in one step, whose budgets are most of them small.
    assert max(found["served"]["tower"]) == max(found["served"]["guidance"]) == images
    assert sum(found["served"]["tower"]) == 15


@on_v1_alone
def test_cache_of_a_size_that_is_no_number_stops_the_server(
    start: Callable[..., Any],
) -> None:
    with pytest.raises(ServerError, match="'feature_cache_gb' is -1; allowed: a number of GiB"):
        start({"feature_cache_gb": -1}).__enter__()
