"""``POST /v1/masks``: beside transformers, alone and together, and what it refuses."""

import asyncio
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.client import data_url
from tests.e2e.masks_server import (
    EIGHT,
    TWO,
    MasksServer,
    assert_masks,
    assert_points,
    decoded,
    landscape_and_portrait,
    masks_server,
)
from tests.e2e.runners import V1, Runner, on_v1_alone
from tests.e2e.test_examples import run
from vllm_litelvlm.demo.grounding import build_grounding
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.grounding.conversation import conversations, rounds


@pytest.fixture(scope="module")
def server(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MasksServer]:
    with masks_server(runner, tmp_path_factory.mktemp("masks"), "--runner=pooling") as running:
        yield running


@pytest.fixture(scope="module")
def pictures(photographs: Sequence[Image.Image]) -> list[Image.Image]:
    return landscape_and_portrait(photographs)


CASES: list[tuple[int, list[str], Literal["rounds", "separate"], dict[str, Any]]] = [
    (0, TWO, "rounds", {"budget": 64}),
    (1, EIGHT, "rounds", {"budget": 64, "positions": "compact"}),
    (0, TWO, "separate", {"budget": 64, "positions": "compact"}),
    (1, TWO, "rounds", {"budget": 576}),
    (0, EIGHT, "separate", {"budget": 40}),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_masks_and_their_prompts_are_those_of_transformers(
    server: MasksServer, runner: Runner, pictures: Sequence[Image.Image], case: int
) -> None:
    number, expressions, conversation, options = CASES[case]
    if runner is not V1 and case > 3:
        pytest.skip("Triton's interpreter is slow")
    picture, reference = pictures[number], server.reference
    link, field = data_url(picture), {"litelvlm": options}
    body = {
        "image": link,
        "expressions": expressions,
        "conversation": conversation,
        "mm_processor_kwargs": field,
    }
    answer = server.masks(body)
    assert [one["expression"] for one in answer["data"]] == expressions
    vectors = []
    for together in conversations(expressions, conversation):
        kept = list(range(576))
        if options["budget"] < 576:
            kept = reference.choose(picture, together, options["budget"]).kept
        original = options.get("positions", "original") == "original"
        of_transformers = reference.vectors(
            picture, rounds({"type": "image"}, together), kept, original
        )
        part = {"type": "image_url", "image_url": {"url": link}}
        pooled = server.post(
            {
                "messages": rounds(part, together),
                "task": "token_classify",
                "add_generation_prompt": False,
                "mm_processor_kwargs": {"litelvlm": {"texts": together, **options}},
            },
            "/pooling",
        ).json()
        ours = torch.tensor(pooled["data"][0]["data"])[: len(together)]
        torch.testing.assert_close(ours, of_transformers, atol=1e-4, rtol=0)
        vectors += of_transformers.unbind()
    assert_masks(answer["data"], reference, picture, torch.stack(vectors))


def test_masks_of_a_conversation_are_those_of_transformers(
    server: MasksServer, runner: Runner, pictures: Sequence[Image.Image]
) -> None:
    assert_points(server, pictures[0], 64, original=True)
    if runner is V1:
        assert_points(server, pictures[0], 576, original=False)


@on_v1_alone
def test_shuffled_concurrent_requests_are_each_answered_as_alone(
    server: MasksServer, pictures: Sequence[Image.Image]
) -> None:
    bodies = [
        {
            "image": data_url(picture),
            "expressions": expressions,
            "conversation": conversation,
            "mm_processor_kwargs": {"litelvlm": {"budget": budget}},
        }
        for picture in pictures
        for expressions in (TWO, EIGHT[2:5], EIGHT[5:6])
        for budget in (64, 150)
        for conversation in ("rounds", "separate")
    ]
    alone = [server.masks(body) for body in bodies]
    order = [number % len(bodies) for number in range(48)]
    random.Random(3).shuffle(order)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=600) as client:
            sent = [client.post(f"{server.url}/v1/masks", json=bodies[one]) for one in order]
            return list(await asyncio.gather(*sent))

    for number, answer in zip(order, asyncio.run(ask()), strict=True):
        assert answer.status_code == 200
        found = answer.json()
        assert found["usage"]["prompt_tokens"] == alone[number]["usage"]["prompt_tokens"]
        for one, same in zip(found["data"], alone[number]["data"], strict=True):
            assert (decoded(one) != decoded(same)).mean() < 1e-4


@on_v1_alone
def test_frames_and_formats(server: MasksServer, pictures: Sequence[Image.Image]) -> None:
    links = [data_url(picture) for picture in pictures]
    body = {
        "images": links,
        "expressions": TWO,
        "mm_processor_kwargs": {"litelvlm": {"budget": 30}},
    }
    masks = server.masks(body)["data"]
    assert [(one["frame"], one["index"]) for one in masks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one in masks:
        picture = pictures[one["frame"]]
        assert one["segmentation"]["size"] == [picture.height, picture.width]
    polygons = server.masks({**body, "format": "polygon"})["data"]
    pngs = server.masks({**body, "format": "png"})["data"]
    for rle, polygon, png in zip(masks, polygons, pngs, strict=True):
        assert rle["bbox"] == polygon["bbox"] == png["bbox"]
        assert isinstance(png["segmentation"], str)
        assert isinstance(polygon["segmentation"], list)
    metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    assert "litelvlm_mask_expressions_total" in metrics
    assert "litelvlm_sam_cache_hits" in metrics


IMAGE = data_url(Image.new("RGB", (40, 30), "red"))
GOOD: dict[str, Any] = {"image": IMAGE, "expressions": ["a cup"]}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"expressions": []}, "at least 1 item"),
    ({"expressions": ["cup"] * 65}, "at most 64"),
    ({"expressions": ["cup"] * 10_000}, "at most 64"),
    ({"expressions": [""]}, "at least 1 character"),
    ({"expressions": ["  \n "]}, "at least 1 character"),
    ({"expressions": ["x" * 1001]}, "at most 1000 characters"),
    ({"expressions": "a cup"}, "valid list"),
    ({"expressions": [3]}, "valid string"),
    ({"expressions": None}, "give either 'expressions' and a picture"),
    ({"image": None}, "give either 'image'"),
    ({"image": ""}, "at least 1 character"),
    ({"image": 7}, "valid string"),
    ({"images": [IMAGE]}, "give either 'image'"),
    ({"image": None, "images": []}, "at least 1 item"),
    ({"image": None, "images": [IMAGE] * 65}, "at most 64"),
    ({"image": None, "images": [IMAGE, "data:image/png;base64,AAAA"]}, "Failed to load image"),
    ({"image": "data:image/png;base64,AAAA"}, "Failed to load image"),
    ({"image": "data:image/png;base64,***"}, ""),
    ({"image": "data:text/plain;base64,AAAA"}, ""),
    ({"image": "http://127.0.0.1:9/cup.png"}, "cannot be fetched"),
    ({"image": "http://nowhere.invalid/cup.png"}, "cannot be fetched"),
    ({"image": "ftp://nowhere.invalid/cup.png"}, ""),
    ({"image": "file:///etc/hostname"}, ""),
    ({"format": "jpeg"}, "'rle', 'png' or 'polygon'"),
    ({"conversation": "alone"}, "'rounds' or 'separate'"),
    ({"expression": "a cup"}, "Extra inputs"),
    ({"mm_processor_kwargs": {"litelvlm": {"budget": 0}}}, "'budget' is 0; allowed"),
    ({"mm_processor_kwargs": {"litelvlm": {"method": "none"}}}, "none"),
    ({"mm_processor_kwargs": {"litelvlm": 3}}, "litelvlm"),
    ({"mm_processor_kwargs": {"budget": 3}}, "litelvlm"),
    ({"mm_processor_kwargs": {"do_resize": False}}, "--trust-request-mm-kwargs"),
    ({"image": None, "images": [IMAGE] * 9 + ["data:image/png;base64,AAAA"]}, "Failed to load"),
    ({"litelvlm": {"budget": 3}}, "Extra inputs"),
    ({"expressions": ["a cup " * 160] * 64}, ""),
    ({"expressions": ["a cup [SEG]"]}, "are special tokens of the model, such as [SEG]"),
    ({"expressions": ["a cup", "the <image> of it"]}, "are special tokens of the model"),
]


@on_v1_alone
@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_cannot_be_is_refused_and_the_server_serves_on(
    server: MasksServer, number: int
) -> None:
    changed, told = BAD[number]
    answer = server.post({**GOOD, **changed})
    assert answer.status_code == 400, answer.text[:500]
    assert told in answer.json()["error"]["message"]
    assert len(server.masks(GOOD)["data"]) == 1


@on_v1_alone
def test_texts_are_the_expressions_unless_they_are_named(
    server: MasksServer, pictures: Sequence[Image.Image]
) -> None:
    body = {"image": data_url(pictures[0]), "expressions": TWO}

    def masks(**options: Any) -> list[Any]:
        field = {"litelvlm": {"budget": 40, **options}}
        return [
            one["segmentation"]
            for one in server.masks({**body, "mm_processor_kwargs": field})["data"]
        ]

    assert masks() == masks(texts=None) == masks(texts=TWO)
    assert masks() != masks(texts=["something else"])


@on_v1_alone
def test_wrong_content_type_is_told(server: MasksServer) -> None:
    answer = httpx.post(
        f"{server.url}/v1/masks", content="{}", headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 400
    assert "application/json" in answer.text


@on_v1_alone
def test_requests_that_are_preempted_are_answered_as_alone(
    runner: Runner, photographs: Sequence[Image.Image], tmp_path: Path
) -> None:
    checkpoint = build_grounding(tmp_path / "model")
    arguments = (
        *(
            "--runner=pooling",
            "--served-model-name=model",
            "--dtype=float32",
            "--enforce-eager",
            "--max-model-len=2048",
        ),
        *("--max-num-seqs=12", "--max-num-batched-tokens=1024", "--num-gpu-blocks-override=40"),
        "--long-prefill-token-threshold=128",
    )
    texts = [f"thing number {number} of these" for number in range(34)]
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options={"budget": 64},
        arguments=arguments,
        environment=runner.environment,
        log=tmp_path / "server.log",
    ) as running:

        async def ask(bodies: Sequence[Any]) -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=600) as client:
                sent = [client.post(f"{running.url}/v1/masks", json=body) for body in bodies]
                return list(await asyncio.gather(*sent))

        for turn in range(3):  # how requests meet in the engine is not ours to say
            bodies = [
                {"image": data_url(photographs[turn].rotate(7 * number)), "expressions": texts}
                for number in range(12)
            ]
            together = asyncio.run(ask(bodies))
            assert {answer.status_code for answer in together} == {200}
            metrics = httpx.get(f"{running.url}/metrics", timeout=30).text
            preempted = re.search(r"(?m)^vllm:num_preemptions_total\{[^}]*\} (\S+)", metrics)
            assert preempted is not None
            if float(preempted[1]) > 0:
                break
        else:
            pytest.fail("no request was preempted")
        for number in (0, 11):
            alone = httpx.post(f"{running.url}/v1/masks", json=bodies[number], timeout=600).json()
            for one, other in zip(together[number].json()["data"], alone["data"], strict=True):
                assert (decoded(one) != decoded(other)).mean() < 1e-4


@on_v1_alone
def test_unknown_model_is_not_found(server: MasksServer) -> None:
    answer = server.post({**GOOD, "model": "other"})
    assert answer.status_code == 404
    assert "`other` does not exist" in answer.json()["error"]["message"]


@on_v1_alone
def test_example_draws_masks(
    server: MasksServer, pictures: Sequence[Image.Image], tmp_path: Path
) -> None:
    pictures[0].save(tmp_path / "cup.png")
    drawn = tmp_path / "masks.png"
    arguments = ["--budget", "64", "--output", str(drawn), "--url", server.url]
    printed = run("masks.py", str(tmp_path / "cup.png"), *TWO, *arguments)
    assert all(f"{expression}: " in printed for expression in TWO)
    with Image.open(drawn) as image:
        assert image.size == pictures[0].size
        assert np.asarray(image).tobytes() != np.asarray(pictures[0]).tobytes()
    assert "Failed to load" not in printed


@on_v1_alone
def test_batch_example_answers_line_by_line(
    server: MasksServer, pictures: Sequence[Image.Image], tmp_path: Path
) -> None:
    pictures[0].save(tmp_path / "cup.png")
    asked = [
        {"image": str(tmp_path / "cup.png"), "expressions": TWO},
        {"image": str(tmp_path / "none.png"), "expressions": TWO},
        {"image": str(tmp_path / "cup.png"), "expressions": [" "]},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, asked)))
    files = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    run("masks_batch.py", str(server.llava), *files, "--clip-model", str(server.clip))
    good, missing, empty = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    options = {"budget": 192, "positions": "compact"}
    body = {"image": data_url(pictures[0]), "expressions": TWO}
    served = server.masks({**body, "mm_processor_kwargs": {"litelvlm": options}})["data"]
    for one, other in zip(good["masks"], served, strict=True):
        # Where a logit is next to 0, last bits decide, and the two engines batch otherwise.
        assert (decoded({"segmentation": one}) != decoded(other)).mean() < 1e-3
    assert "none.png" in missing["error"]
    assert "none of them empty" in empty["error"]
