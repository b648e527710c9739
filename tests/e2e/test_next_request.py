"""No request spoils the next one with the same picture, however it ended."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.e2e.client import anthropic_turn, data_url, user_turn
from tests.e2e.conftest import TracedServer, traced_server
from tests.e2e.runners import V1
from vllm_litelvlm.demo.checkpoint import Checkpoint

CHAT = "/v1/chat/completions"
WORDS = "Where is the red cup?"


@pytest.fixture(scope="module", params=["", "0.05"], ids=["default cache", "small cache"])
def served(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TracedServer]:
    """Nothing here depends on the model runner. The small cache has room for some 37 pictures."""
    arguments = [f"--mm-processor-cache-gb={request.param}"] if request.param else []
    folder = tmp_path_factory.mktemp("next-request")
    with traced_server(V1, checkpoint, folder, arguments) as running:
        yield running


def picture(seed: int) -> str:
    """A picture that no other test has sent."""
    noise = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return data_url(Image.fromarray(noise))


def chat(url: str, **more: Any) -> dict[str, Any]:
    return {"model": "model", "messages": [user_turn(WORDS, url)], "max_tokens": 1, **more}


def count(url: str) -> dict[str, Any]:
    return {"model": "model", "messages": [anthropic_turn(WORDS, url)]}


def refused_batch(url: str) -> dict[str, Any]:
    """Its second conversation is longer than the model reads."""
    talks = [[user_turn(WORDS, url)], [user_turn("word " * 5000, url)]]
    return {"model": "model", "messages": talks, "max_tokens": 1}


ENDS = {
    "counted by /v1/messages/count_tokens": ("/v1/messages/count_tokens", count, 200),
    "counted by /tokenize": ("/tokenize", chat, 200),
    "refused for its temperature": (CHAT, lambda url: chat(url, temperature=-1), 400),
    "refused for its length": (CHAT, lambda url: chat(url, max_tokens=100_000), 400),
    "refused for its options": (
        CHAT,
        lambda url: chat(url, mm_processor_kwargs={"litelvlm": {"budget": 0}}),
        400,
    ),
    "refused in a batch": ("/v1/chat/completions/batch", refused_batch, 400),
}


async def statuses(client: httpx.AsyncClient, url: str, times: int) -> list[int]:
    answers = await asyncio.gather(*(client.post(CHAT, json=chat(url)) for _ in range(times)))
    return [answer.status_code for answer in answers]


@pytest.mark.parametrize("number", range(len(ENDS)), ids=list(ENDS))
async def test_picture_of_a_request_that_never_reached_the_engine_is_answered(
    served: TracedServer, number: int
) -> None:
    path, body, status = list(ENDS.values())[number]
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as client:
        for seed, times in ((2 * number, 1), (2 * number + 1, 8)):
            url = picture(seed)
            ended = await client.post(path, json=body(url))
            assert ended.status_code == status, ended.text
            assert await statuses(client, url, times) == [200] * times


async def test_picture_of_a_client_that_gave_up_is_answered(served: TracedServer) -> None:
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as client:
        for number in range(200):
            url = picture(1000 + number)
            patience = (1 + number * 119 / 199) / 1000
            with suppress(TimeoutError):
                await asyncio.wait_for(client.post(CHAT, json=chat(url)), patience)
            times = 8 if number % 4 == 0 else 1
            assert await statuses(client, url, times) == [200] * times, number


async def test_pictures_that_come_again_at_once_and_late_are_answered(
    served: TracedServer,
) -> None:
    """Sixty pictures, more than the small cache holds, in four waves that overlap."""
    urls = [picture(2000 + number) for number in range(60)]
    async with httpx.AsyncClient(base_url=served.url, timeout=300) as client:
        limit = asyncio.Semaphore(16)

        async def one(url: str) -> int:
            async with limit:
                return (await client.post(CHAT, json=chat(url))).status_code

        order = [urls[number * 7 % 60] for number in range(60)]
        waves = [*urls, *order, *urls[::-1], *urls[:20], *urls[:20]]
        assert set(await asyncio.gather(*map(one, waves))) == {200}
