"""Masks from a server that chats: beside transformers, beside chats, of what was said in a chat."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.client import data_url, user_turn
from tests.e2e.masks_server import (
    EIGHT,
    TWO,
    MasksServer,
    assert_alike,
    assert_masks,
    assert_points,
    decoded,
    landscape_and_portrait,
    masks_server,
)
from tests.e2e.runners import V1, Runner, on_v1_alone, slow_on_v2
from tests.e2e.test_examples import run
from tests.e2e.workplace import saved
from vllm_litelvlm.grounding.conversation import conversations, rounds

QUESTION = "Where is the red cup?"
_ONE_TOKEN = {"temperature": 1, "top_k": 1}


@pytest.fixture(scope="module")
def server(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MasksServer]:
    """One that generates, as it does unless told otherwise, with few blocks and no SAM cache."""
    with masks_server(
        runner,
        tmp_path_factory.mktemp("pointing"),
        "--num-gpu-blocks-override=17",
        talkative=True,
        sam_cache_gb=0,
        sam_device="cpu",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(photographs: Sequence[Image.Image]) -> list[Image.Image]:
    return landscape_and_portrait(photographs)


CASES: list[tuple[int, list[str], Literal["rounds", "separate"], dict[str, Any]]] = [
    (0, TWO, "rounds", {"budget": 64}),
    (1, EIGHT, "rounds", {"budget": 64, "positions": "compact"}),
    (1, TWO, "rounds", {"budget": 576}),
    (0, TWO, "separate", {"budget": 40, "positions": "compact"}),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_masks_are_those_of_transformers(
    server: MasksServer, runner: Runner, pictures: Sequence[Image.Image], case: int
) -> None:
    number, expressions, conversation, options = CASES[case]
    if runner is not V1 and case > 1:
        pytest.skip("Triton's interpreter is slow")
    picture, reference = pictures[number], server.reference
    body = {
        "image": data_url(picture),
        "expressions": expressions,
        "conversation": conversation,
        "mm_processor_kwargs": {"litelvlm": options},
    }
    answer = server.masks(body)
    assert [one["expression"] for one in answer["data"]] == expressions
    original = options.get("positions", "original") == "original"
    vectors = []
    for together in conversations(expressions, conversation):
        kept = list(range(576))
        if options["budget"] < 576:
            kept = reference.choose(picture, together, options["budget"]).kept
        asked = rounds({"type": "image"}, together)
        vectors.append(reference.vectors(picture, asked, kept, original))
    assert_masks(answer["data"], reference, picture, torch.cat(vectors))


def test_masks_of_a_conversation_are_those_of_transformers(
    server: MasksServer, runner: Runner, pictures: Sequence[Image.Image]
) -> None:
    assert_points(server, pictures[1], 64, original=True)
    if runner is V1:
        assert_points(server, pictures[1], 576, original=False)


def chat(question: str, *pictures: Image.Image, budget: int = 64, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [user_turn(question, *pictures)],
        "mm_processor_kwargs": {"litelvlm": {"budget": budget}},
        "temperature": 0,
        "max_tokens": 40,
        "return_token_ids": True,
        **fields,
    }


def test_generated_segs_have_the_masks_of_the_states_that_said_them(
    server: MasksServer, pictures: Sequence[Image.Image]
) -> None:
    picture, reference = pictures[0], server.reference
    asked = chat(QUESTION, picture)
    choice = server.post(asked, "/v1/chat/completions").json()["choices"][0]
    said, message = choice["token_ids"], choice["message"]
    assert 1 <= said.count(reference.seg) < len(said)
    message["token_ids"] = said
    body = {
        "messages": [*asked["messages"], message],
        "mm_processor_kwargs": asked["mm_processor_kwargs"],
    }
    answer = server.masks(body)
    ids = [*reference.ids(reference.prompt(asked["messages"])), *said]
    kept = reference.choose(picture, [QUESTION], 64).kept
    vectors = reference.pointed([picture], ids, [kept], True)
    assert len(answer["data"]) == said.count(reference.seg)
    # What random weights say twice in a row may have one state and one mask.
    assert_masks(answer["data"], reference, picture, vectors, distinct=False)
    for one, words in zip(answer["data"], message["content"].split("[SEG]"), strict=False):
        assert one["expression"] == words.strip() or "\ufffd" in words
    # The answer goes on to be asked about.
    later = [*body["messages"], user_turn("And the saucer?")]
    choice = server.post({**asked, "messages": later}, "/v1/chat/completions").json()["choices"][0]
    message = {**choice["message"], "token_ids": choice["token_ids"]}
    again = server.masks({**body, "messages": [*later, message]})["data"]
    assert_alike(again[: len(answer["data"])], answer["data"])
    assert len(again) == len(answer["data"]) + choice["token_ids"].count(reference.seg)
    assert {one["turn"] for one in again} <= {1, 3}


@on_v1_alone
def test_a_mask_is_of_the_image_that_is_told(
    server: MasksServer, pictures: Sequence[Image.Image]
) -> None:
    reference, answer = server.reference, " Sure, it is [SEG]."
    asked = [user_turn(QUESTION, *pictures), {"role": "assistant", "content": answer}]
    ids = reference.ids(reference.prompt(asked[:1]) + answer)
    kept = [reference.choose(picture, [QUESTION], 64).kept for picture in pictures]
    vectors = reference.pointed(pictures, ids, kept, True)
    for number, picture in enumerate(pictures):
        body = {"messages": asked, "mm_processor_kwargs": {"litelvlm": {"budget": 64}}}
        found = server.masks({**body, "image_index": number})["data"]
        assert found[0]["frame"] == number
        assert_masks(found, reference, picture, vectors)


@on_v1_alone
def test_masks_and_chats_together_are_answered_as_alone_though_preempted(
    server: MasksServer, photographs: Sequence[Image.Image]
) -> None:
    masks = [
        {
            "image": data_url(photograph),
            "expressions": expressions,
            "conversation": conversation,
            "mm_processor_kwargs": {"litelvlm": {"budget": budget}},
        }
        for photograph in photographs[:2]
        for expressions, conversation in ((EIGHT, "rounds"), (TWO, "separate"))
        for budget in (64, 150)
    ]
    chats = [
        # Of several samples vLLM wants a temperature; of one token to choose from it has no effect.
        chat(f"Where is {thing}?", photograph, budget=192, max_tokens=120, n=n, **_ONE_TOKEN)
        for photograph in photographs[:2]
        for thing, n in (("the red cup", 1), ("a dog", 2))
    ]
    asked = [("/v1/masks", one) for one in masks] + [("/v1/chat/completions", one) for one in chats]

    def told(answer: httpx.Response) -> Any:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        if "choices" in found:
            return [one["token_ids"] for one in found["choices"]]
        return [decoded(one) for one in found["data"]]

    async def ask(order: Sequence[int]) -> list[Any]:
        async with httpx.AsyncClient(timeout=600) as client:
            sent = [client.post(server.url + asked[one][0], json=asked[one][1]) for one in order]
            return [told(answer) for answer in await asyncio.gather(*sent)]

    alone = [told(server.post(body, path)) for path, body in asked]
    order = [number % len(asked) for number in range(24)]
    for turn in range(3):  # how requests meet in the engine is not ours to say
        random.Random(turn).shuffle(order)
        for number, answer in zip(order, asyncio.run(ask(order)), strict=True):
            if asked[number][0] == "/v1/masks":
                for one, other in zip(answer, alone[number], strict=True):
                    assert (one != other).mean() < 1e-4
            else:
                assert answer == alone[number]
        if counted(server, "vllm:num_preemptions_total") > 0:
            break
    else:
        pytest.fail("no request was preempted")


def counted(server: MasksServer, name: str) -> float:
    found = re.search(rf"(?m)^{name}(?:\{{[^}}]*\}})? (\S+)", server.metrics())
    assert found is not None, name
    return float(found[1])


@on_v1_alone
def test_requests_that_are_given_up_leave_nothing_behind(
    server: MasksServer, pictures: Sequence[Image.Image]
) -> None:
    body = {"image": data_url(pictures[0]), "expressions": TWO}
    before = server.masks(body)["data"]

    async def give_up() -> None:
        async with httpx.AsyncClient(timeout=0.3) as client:
            many = {**body, "expressions": [f"thing {number}" for number in range(40)]}
            sent = [client.post(f"{server.url}/v1/masks", json=many) for _ in range(4)]
            given_up = await asyncio.gather(*sent, return_exceptions=True)
            assert {type(one) for one in given_up} == {httpx.ReadTimeout}

    asyncio.run(give_up())
    deadline = time.monotonic() + 60
    while any(counted(server, f"vllm:num_requests_{what}") for what in ("running", "waiting")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert_alike(server.masks(body)["data"], before)


@on_v1_alone
def test_sam_cache_of_no_size_keeps_nothing(
    server: MasksServer, pictures: Sequence[Image.Image]
) -> None:
    body = {"image": data_url(pictures[0]), "expressions": TWO}
    # Requests of other tests met while one of them encoded, which is a hit.
    hits = counted(server, "litelvlm_sam_cache_hits_total")
    asked = counted(server, "litelvlm_sam_cache_queries_total")
    assert_alike(server.masks(body)["data"], server.masks(body)["data"])
    assert counted(server, "litelvlm_sam_cache_queries_total") == asked + 2
    assert counted(server, "litelvlm_sam_cache_hits_total") == hits


RED, BLUE = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
ASKED, SAID = user_turn(QUESTION, RED), {"role": "assistant", "content": " It is [SEG]."}
TWICE = user_turn(QUESTION, RED, BLUE)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "at least 1 item"),
    ({"messages": "It is [SEG]"}, "valid list"),
    ({"messages": [ASKED]}, "No answer in messages has [SEG]"),
    ({"messages": [ASKED, {**SAID, "content": "It is there."}]}, "No answer in messages has [SEG]"),
    ({"messages": [ASKED, {**SAID, "token_ids": [5, 6]}]}, "No answer in messages has [SEG]"),
    ({"messages": [ASKED, {**SAID, "token_ids": [-1]}]}, "greater than or equal to 0"),
    ({"messages": [ASKED, {**SAID, "token_ids": [2050, 99999, 2050]}]}, "have 99999"),
    ({"messages": [ASKED, {**SAID, "token_ids": [5] * 3000 + [2050]}]}, "An answer has 3001"),
    ({"messages": [{**ASKED, "token_ids": [2050]}, SAID]}, "of answers alone"),
    ({"messages": [user_turn(QUESTION), SAID]}, "There is no image in front"),
    ({"messages": [user_turn(QUESTION), SAID, ASKED, SAID]}, "stands before image 0"),
    ({"messages": [user_turn("Where is [SEG]?", RED), SAID]}, "messages[0] is by 'user'"),
    (
        {"messages": [{"role": "system", "content": "Say [SEG]."}, ASKED, SAID]},
        "messages[0] is by 'system'",
    ),
    ({"messages": [ASKED, {**SAID, "role": "tool"}]}, "'system', 'user' or 'assistant'"),
    ({"messages": [ASKED, {"role": "assistant"}]}, "Field required"),
    ({"messages": [ASKED, {**SAID, "content": [{"type": "audio"}]}]}, "audio"),
    ({"messages": [ASKED, SAID], "expressions": ["a cup"]}, "leave out 'expressions'"),
    ({"messages": [ASKED, SAID], "image": data_url(RED)}, "leave out 'image'"),
    ({"messages": [ASKED, SAID], "conversation": "rounds"}, "leave out 'conversation'"),
    ({"messages": [TWICE, SAID]}, "has 2 images in front"),
    ({"messages": [TWICE, SAID], "image_index": 2}, "image_index is 2"),
    ({"messages": [TWICE, SAID], "image_index": -1}, "greater than or equal to 0"),
    ({"messages": [ASKED, {**SAID, "content": " [SEG]" * 65}]}, "have 65 [SEG]"),
    ({"messages": [ASKED, *[SAID] * 65]}, "have 65 or more [SEG]"),
    ({"messages": [ASKED, {**SAID, "content": "far" * 3000 + " [SEG]"}]}, "maximum context length"),
    ({"messages": [user_turn(QUESTION, "data:image/png;base64,AAAA"), SAID]}, "Failed to load"),
    (
        {"messages": [ASKED, SAID], "mm_processor_kwargs": {"litelvlm": {"budget": 0}}},
        "'budget' is 0; allowed",
    ),
    ({"image": data_url(RED), "expressions": ["a cup"], "image_index": 0}, "is of 'messages'"),
    ({"image": data_url(RED)}, "give either 'expressions' and a picture, or 'messages'"),
    ({"image": data_url(RED), "expressions": ["a cup " * 160] * 64}, "maximum context length"),
]


@on_v1_alone
@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_cannot_be_is_refused_and_the_server_serves_on(
    server: MasksServer, number: int
) -> None:
    body, told = BAD[number]
    answer = server.post(body)
    assert answer.status_code == 400, answer.text[:500]
    assert told in answer.json()["error"]["message"]
    assert len(server.masks({"messages": [ASKED, SAID]})["data"]) == 1


@on_v1_alone
def test_example_draws_what_an_answer_points_at(
    server: MasksServer, pictures: Sequence[Image.Image], tmp_path: Path
) -> None:
    pictures[0].save(tmp_path / "cup.png")
    drawn = tmp_path / "masks.png"
    arguments = ["--budget", "64", "--output", str(drawn), "--url", server.url]
    printed = run("masks_chat.py", str(tmp_path / "cup.png"), QUESTION, *arguments)
    assert "[SEG]" in printed
    assert "pixels, box" in printed
    with Image.open(drawn) as image:
        assert image.size == pictures[0].size
        assert np.asarray(image).tobytes() != np.asarray(pictures[0]).tobytes()


OFFLINE: list[tuple[list[str], Literal["rounds", "separate"], dict[str, Any]]] = [
    (TWO, "rounds", {"budget": 64}),
    (EIGHT, "rounds", {"budget": 64, "positions": "compact"}),
    (TWO, "separate", {"budget": 576}),
]


@slow_on_v2
def test_prompts_of_an_offline_engine_that_generates_are_those_of_transformers(
    runner: Runner, server: MasksServer, pictures: Sequence[Image.Image], tmp_path: Path
) -> None:
    """The servers' engines give the same, which only masks show of them."""
    asked = OFFLINE if runner is V1 else OFFLINE[:2]
    pictures = pictures if runner is V1 else pictures[:1]  # Triton's interpreter is slow
    job = {
        "model": str(server.llava),
        "clip": str(server.clip),
        "images": saved(pictures, tmp_path),
        "asked": [
            {"texts": texts, "conversation": conversation, "options": options}
            for texts, conversation, options in asked
        ],
        "answers": str(tmp_path / "answers.json"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.offline_masks", json.dumps(job)],
        env={**os.environ, **runner.environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "answers.json").read_text())
    vectors = iter(found["vectors"])
    for (texts, conversation, options), answered in zip(asked, found["masks"], strict=True):
        for picture, masks in zip(pictures, answered, strict=True):
            expected = []
            for together in conversations(texts, conversation):
                kept = list(range(576))
                if options["budget"] < 576:
                    kept = server.reference.choose(picture, together, options["budget"]).kept
                original = options.get("positions", "original") == "original"
                messages = rounds({"type": "image"}, together)
                expected.append(server.reference.vectors(picture, messages, kept, original))
            ours = torch.tensor(next(vectors))
            torch.testing.assert_close(ours, torch.cat(expected), atol=1e-4, rtol=0)
            data = [
                {"segmentation": mask, "area": decoded({"segmentation": mask}).sum()}
                for mask in masks
            ]
            assert_masks(data, server.reference, picture, torch.cat(expected))
    assert next(vectors, None) is None
