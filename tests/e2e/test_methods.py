"""Every method as a request option of one server."""

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError
from PIL import Image

from tests.e2e.client import Answer, ask, async_client, data_url, read, request, user_turn
from tests.e2e.conftest import ARGUMENTS, TracedServer
from tests.e2e.reference import Reference
from tests.e2e.runners import on_v1_alone, python_path, slow_on_v2
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.evaluation.backend import Question
from vllm_litelvlm.evaluation.server_backend import ServerBackend
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend
from vllm_litelvlm.pruning.registry import decoder_method_names, method_names

QUESTIONS = ["Where is the red cup?", "Is there a dog?"]
BUDGETS = [64, 192]
EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_method"
#: What distinguishes requests besides BUDGETS, which a variant's own budget comes before: this
#: model's projector has rank 64, and what CDPruner takes past that is up to rounding.
VARIANTS: list[dict[str, Any]] = [
    *({"method": name} for name in method_names() if name != "cdpruner"),
    {"method": "cdpruner", "budget": 48},
    {"method": "cdpruner", "centred": True, "budget": 48},
    {"method": "divprune", "centred": True},
    {"method": "trim", "direction": "low"},
    {"method": "prumerge+", "share": 0.5},
    {"method": "visionzip", "share": 0.5},
    {"method": "vispruner", "share": 0.25},
]


@on_v1_alone
async def test_methods_mixed_in_one_server_answer_as_each_does_alone(
    server: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    combinations = [
        (variant, image, question, budget)
        for variant, image, question in itertools.product(range(len(VARIANTS)), range(2), QUESTIONS)
        for budget in ([VARIANTS[variant]["budget"]] if "budget" in VARIANTS[variant] else BUDGETS)
    ]
    urls = [data_url(image) for image in photographs[:2]]

    def arguments(variant: int, image: int, question: str, budget: int) -> dict[str, Any]:
        options = {"budget": budget, **VARIANTS[variant]}
        return request(user_turn(question, urls[image]), options, tokens=6)

    async with async_client(server.url) as client:
        alone: dict[Any, Answer] = {}
        for combination in combinations:
            server.forget()
            alone[combination] = read(
                await client.chat.completions.create(**arguments(*combination))
            )
        server.forget()
        shuffled = combinations * 2
        random.Random(0).shuffle(shuffled)
        completions = await asyncio.gather(
            *(client.chat.completions.create(**arguments(*one)) for one in shuffled)
        )
    for combination, completion in zip(shuffled, completions, strict=True):
        answer = read(completion)
        assert answer.token_ids == alone[combination].token_ids, VARIANTS[combination[0]]
        assert answer.logprobs == pytest.approx(alone[combination].logprobs, abs=1e-3)
    # Nearly all of them differ, so a mix-up would have shown.
    pruned = [one for one in combinations if VARIANTS[one[0]]["method"] != "keep-all"]
    different = {alone[combination].logprobs for combination in pruned}
    assert len(different) > 0.8 * len(pruned)


@pytest.mark.parametrize(
    "variant", [one for one in VARIANTS if one["method"] != "vispruner"], ids=str
)
def test_served_method_answers_as_transformers_does_given_the_same_tokens(
    server: TracedServer,
    beside: TransformersBackend,
    photographs: Sequence[Image.Image],
    variant: dict[str, Any],
) -> None:
    questions = [
        Question(image, QUESTIONS[0], {"budget": budget, **variant}, 8)
        for image in photographs[:2]
        for budget in BUDGETS
    ]
    served = ServerBackend(server.url).answer(questions)
    expected = beside.answer(questions)
    for ours, theirs in zip(served, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.prompt_tokens == theirs.prompt_tokens


def test_vispruner_answers_as_transformers_does_given_what_it_kept(
    server: TracedServer, checkpoint: Checkpoint, photographs: Sequence[Image.Image]
) -> None:
    # Its rounds of matching turn the last bit of a feature into another choice, so vLLM's tower
    # and transformers' need not agree on the tokens; tests/pruning holds the choice itself.
    reference = Reference(checkpoint.llava, checkpoint.clip)
    server.forget()
    for image, budget in itertools.product(photographs[:2], BUDGETS):
        options = {"method": "vispruner", "budget": budget}
        served = ask(server.url, user_turn(QUESTIONS[0], image), options)
        kept = server.selections()[-1]["kept"]
        assert len(set(kept)) == budget
        prompt = f"USER: <image>\n{QUESTIONS[0]} ASSISTANT:"
        assert list(served.token_ids) == reference.generate(prompt, [image], [kept], 8)


@slow_on_v2
@pytest.mark.parametrize("method", method_names())
def test_budget_of_all_tokens_is_the_whole_image_whatever_the_method(
    server: TracedServer, photographs: Sequence[Image.Image], method: str
) -> None:
    turn = user_turn(QUESTIONS[0], photographs[0])
    whole = ask(server.url, turn, {"method": "keep-all"})
    server.forget()
    assert ask(server.url, turn, {"method": method, "budget": 576}) == whole


@slow_on_v2
@pytest.mark.parametrize("method", method_names())
def test_every_method_has_the_budget_that_was_asked_for(
    server: TracedServer, photographs: Sequence[Image.Image], method: str
) -> None:
    if method == "keep-all":
        pytest.skip("it keeps all")
    turn = user_turn(QUESTIONS[0], *photographs[:2])
    whole = ask(server.url, turn, {"method": "keep-all"}, 1).prompt_tokens
    for budget in (1, 2, 575):
        answer = ask(server.url, turn, {"method": method, "budget": budget}, 1)
        assert whole - answer.prompt_tokens == 2 * (576 - budget)


@slow_on_v2
@pytest.mark.parametrize("method", decoder_method_names())
def test_method_inside_the_language_model_is_refused_and_told_why(
    server: TracedServer, photographs: Sequence[Image.Image], method: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(server.url, user_turn(QUESTIONS[0], photographs[0]), {"method": method})
    assert "paged attention does not give them" in str(caught.value)
    assert "with transformers" in str(caught.value)
    assert ask(server.url, user_turn(QUESTIONS[0], photographs[0]), {"budget": 64}).token_ids


def test_method_that_chooses_by_the_text_alone_is_refused_without_one(
    server: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    turn = user_turn("", photographs[0])
    del turn["content"][1]
    with pytest.raises(BadRequestError) as caught:
        ask(server.url, turn, {"method": "trim"})
    assert '"trim", which chooses by the text alone, but the request has none' in str(caught.value)
    assert ask(server.url, turn, {"method": "trim", "texts": "a cup", "budget": 64}, 1).token_ids


def test_method_of_another_package_is_installed_listed_and_served(
    checkpoint: Checkpoint, photographs: Sequence[Image.Image], tmp_path: Path
) -> None:
    site, trace = tmp_path / "site", tmp_path / "trace.jsonl"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    source = tmp_path / "source"  # a build writes beside its source
    source.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    subprocess.run([*pip, "--no-build-isolation", f"--target={site}", str(source)], check=True)
    path = python_path(site)
    listed = subprocess.run(
        [sys.executable, "-m", "vllm_litelvlm.cli", "methods"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "centre" in listed.stdout
    with serve(
        checkpoint.llava,
        clip_model=checkpoint.clip,
        options={"methods": ["centre", "litelvlm"]},
        arguments=ARGUMENTS,
        environment={"PYTHONPATH": path, "VLLM_LITELVLM_TRACE": str(trace)},
        log=tmp_path / "server.log",
    ) as running:
        turn = user_turn(QUESTIONS[0], photographs[0])
        # Four tokens round the corner that 24 patches a side meet in at the middle.
        ask(running.url, turn, {"method": "centre", "budget": 4}, 1)
        ask(running.url, turn, {"method": "centre", "budget": 1, "x": 0.0, "y": 1.0}, 1)
        ask(running.url, turn, {"budget": 64}, 1)
        with pytest.raises(BadRequestError, match="'x' is 2; allowed: a number from 0"):
            ask(running.url, turn, {"method": "centre", "x": 2}, 1)
        with pytest.raises(BadRequestError, match='"random"; this server allows centre, litelvlm'):
            ask(running.url, turn, {"method": "random"}, 1)
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    kept = [line["kept"] for line in lines if line["method"] == "centre"]
    assert kept == [[11 * 24 + 11, 11 * 24 + 12, 12 * 24 + 11, 12 * 24 + 12], [23 * 24]]
    assert [len(line["kept"]) for line in lines if line["method"] == "litelvlm"] == [64]
