"""Named sets of options, each a model of its own on every endpoint; vLLM's own --config file."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai import NotFoundError, OpenAI
from PIL import Image

from tests.e2e.adapter import write_adapter
from tests.e2e.client import (
    Answer,
    anthropic_turn,
    ask,
    async_client,
    data_url,
    read,
    request,
    user_turn,
)
from tests.e2e.conftest import ARGUMENTS
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.server import Server, serve

VARIANTS: dict[str, Any] = {
    "fast": {"budget": 64},
    "plain.2": {"method": "cls-attention", "budget": 29},
    "whole": {"method": "keep-all"},
}
TOKENS = {"fast": 64, "plain.2": 29, "whole": 576}
QUESTION = "Where is the red cup?"


@pytest.fixture(scope="module")
def served(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """All that is asked for stands in a file, the plugin too.

    Nothing here depends on the model runner.
    """
    folder = tmp_path_factory.mktemp("variants")
    adapter = write_adapter(folder / "adapter", checkpoint.llava)
    options = {"clip_model": str(checkpoint.clip), "variants": VARIANTS}
    told = {
        "plugin": "litelvlm",
        "additional-config": {"litelvlm": options},
        "served-model-name": ["model", "alias"],
        "enable-lora": True,
        "lora-modules": [f"adapter={adapter}"],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(told))
    arguments = [one for one in ARGUMENTS if not one.startswith("--served-model-name")]
    with serve(
        checkpoint.llava,
        plugin=False,
        arguments=["--config", str(folder / "config.yaml"), *arguments],
        environment={"HF_HUB_OFFLINE": "1"},
        log=folder / "server.log",
    ) as running:
        yield running


def ask_as(served: Server, model: str, image: Image.Image, options: Any = None) -> Answer:
    return ask(served.url, user_turn(QUESTION, image), options, model=model)


def test_variants_are_listed_beside_every_name_and_adapter(served: Server) -> None:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        listed = {model.id: model for model in client.models.list()}
    names = [*VARIANTS]
    expected = {
        f"{model}{variant}"
        for model in ("model", "alias", "adapter")
        for variant in ("", *(f":{name}" for name in names))
    }
    assert set(listed) == expected
    assert listed["adapter:fast"].parent == "model"  # type: ignore[attr-defined]
    assert listed["model:fast"].root == listed["model"].root  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*VARIANTS])
@pytest.mark.parametrize("model", ["model", "alias", "adapter"])
def test_variant_answers_as_its_options_do(
    served: Server, photographs: Sequence[Image.Image], model: str, name: str
) -> None:
    told = ask_as(served, model, photographs[1], VARIANTS[name])
    assert ask_as(served, f"{model}:{name}", photographs[1]) == told


def test_adapter_under_a_variant_is_the_adapter(
    served: Server, photographs: Sequence[Image.Image]
) -> None:
    adapted = ask_as(served, "adapter:fast", photographs[0])
    assert adapted.logprobs != ask_as(served, "model:fast", photographs[0]).logprobs


def test_request_may_still_say_more(served: Server, photographs: Sequence[Image.Image]) -> None:
    image = photographs[1]
    default = ask_as(served, "model", image).prompt_tokens
    assert default - ask_as(served, "model:fast", image).prompt_tokens == 192 - 64
    smaller = ask_as(served, "model:plain.2", image, {"budget": 16})
    assert smaller == ask_as(served, "model", image, {"method": "cls-attention", "budget": 16})


def test_answer_bears_the_name_that_was_asked_for(
    served: Server, photographs: Sequence[Image.Image]
) -> None:
    body = request(user_turn(QUESTION, photographs[1]))
    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        for model, answered in [
            ("model:fast", "model:fast"),
            ("model", "model"),
            ("adapter:plain.2", "adapter:plain.2"),
        ]:
            assert client.chat.completions.create(**{**body, "model": model}).model == answered
        stream = client.chat.completions.create(**{**body, "model": "model:fast"}, stream=True)
        assert {chunk.model for chunk in stream} == {"model:fast"}


def test_unknown_variant_is_no_model(served: Server, photographs: Sequence[Image.Image]) -> None:
    for model in ("model:fats", "modle:fast", ":fast", "model:fast:fast"):
        with pytest.raises(NotFoundError, match=r"model:fast, model:plain\.2, model:whole"):
            ask_as(served, model, photographs[1])


def post(served: Server, path: str, body: dict[str, Any]) -> Any:
    response = httpx.post(f"{served.url}{path}", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def _responses(served: Server, model: str, url: str) -> int:
    content = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": QUESTION},
    ]
    turns = [{"type": "message", "role": "user", "content": content}]
    body = {"model": model, "input": turns, "max_output_tokens": 4, "temperature": 0}
    answer = post(served, "/v1/responses", body)
    assert answer["model"] == model
    return int(answer["usage"]["input_tokens"])


def _anthropic(model: str, url: str) -> dict[str, Any]:
    return {"model": model, "messages": [anthropic_turn(QUESTION, url)], "max_tokens": 4}


def _messages(served: Server, model: str, url: str) -> int:
    answer = post(served, "/v1/messages", _anthropic(model, url))
    assert answer["model"] == model
    return int(answer["usage"]["input_tokens"])


def _count_tokens(served: Server, model: str, url: str) -> int:
    body = _anthropic(model, url)
    del body["max_tokens"]
    return int(post(served, "/v1/messages/count_tokens", body)["input_tokens"])


def _chat(url: str) -> list[dict[str, Any]]:
    return [user_turn(QUESTION, url)]


def _batch(served: Server, model: str, url: str) -> int:
    body = {"model": model, "messages": [_chat(url), _chat(url)], "max_tokens": 4}
    answer = post(served, "/v1/chat/completions/batch", body)
    assert answer["model"] == model
    return int(answer["usage"]["prompt_tokens"]) // 2


def _tokenize(served: Server, model: str, url: str) -> int:
    return int(post(served, "/tokenize", {"model": model, "messages": _chat(url)})["count"])


@pytest.mark.parametrize(
    "endpoint",
    [_responses, _messages, _count_tokens, _batch, _tokenize],
    ids=lambda it: it.__name__,
)
def test_every_endpoint_knows_variants(
    served: Server, photographs: Sequence[Image.Image], endpoint: Any
) -> None:
    # A picture of its own, so that no endpoint meets what another left in a cache.
    image = photographs[2].rotate(len(endpoint.__name__), expand=False)
    url = data_url(image)
    counts = {name: endpoint(served, f"model:{name}", url) for name in VARIANTS}
    words = counts["whole"] - TOKENS["whole"]
    assert counts == {name: words + TOKENS[name] for name in VARIANTS}


def test_variant_without_an_image_is_the_model(served: Server) -> None:
    body = {"prompt": "Two and two are", "max_tokens": 4, "temperature": 0}
    plain, named = (
        post(served, "/v1/completions", {**body, "model": model})
        for model in ("model", "model:fast")
    )
    assert plain["choices"] == named["choices"]
    assert named["model"] == "model:fast"


async def test_variants_at_once_do_not_mix(
    served: Server, photographs: Sequence[Image.Image]
) -> None:
    turn = user_turn(QUESTION, photographs[3])
    models = ["model", *(f"model:{name}" for name in VARIANTS)] * 4
    async with async_client(served.url) as client:

        async def one(model: str) -> tuple[str, int]:
            completion = await client.chat.completions.create(
                **{**request(turn, tokens=2), "model": model}
            )
            assert completion.model == model
            return model, read(completion).prompt_tokens

        answers = await asyncio.gather(*map(one, models))
    whole = dict(answers)["model:whole"] - 576
    tokens = {"model": 192, **{f"model:{name}": count for name, count in TOKENS.items()}}
    assert [(model, whole + tokens[model]) for model in models] == answers


def test_batch_file_knows_variants(
    checkpoint: Checkpoint, photographs: Sequence[Image.Image], tmp_path: Path
) -> None:
    lines = [
        {
            "custom_id": model,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": _chat(data_url(photographs[1])), "max_tokens": 2},
        }
        for model in ("model", "model:fast", "model:plain.2")
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = {"clip_model": str(checkpoint.clip), "variants": VARIANTS}
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "vllm.entrypoints.cli.main",
                "run-batch",
                "--plugin",
                "litelvlm",
            ),
            *("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")),
            *("--model", str(checkpoint.llava), *ARGUMENTS),
            f"--additional-config={json.dumps({'litelvlm': options})}",
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = {}
    for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()):
        counts[line["custom_id"]] = line["response"]["body"]["usage"]["prompt_tokens"]
    assert counts["model"] - counts["model:fast"] == 192 - 64
    assert counts["model"] - counts["model:plain.2"] == 192 - 29
