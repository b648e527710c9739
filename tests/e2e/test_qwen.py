"""Qwen2.5-VL and Qwen3-VL, served: beside transformers, beside stock vLLM, alone and together."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from openai import BadRequestError
from PIL import Image

from tests.e2e.adapter import merge_adapter
from tests.e2e.client import Answer, ask, async_client, read, request, user_turn
from tests.e2e.qwen_reference import Picture, QwenReference
from tests.e2e.qwen_server import (
    KINDS,
    THIN,
    QwenServer,
    as_sent,
    qwen_server,
    turn,
)
from tests.e2e.runners import SPREADS, TWO_WORKERS, V1, Runner, on_v1_alone
from tests.e2e.slow_methods import SLOW_METHODS
from tests.e2e.test_examples import prompt_tokens, run
from tests.pruning.rederivation import CLEAR, Calls
from vllm_litelvlm.demo.qwen_config import Kind
from vllm_litelvlm.demo.server import serve
from vllm_litelvlm.plugin.models.qwen_front import QwenFamily
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.registry import build_pruner, method_names, offered_methods

QUESTION = "Where is the red cup?"
TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=KINDS)
def qwen(
    request: pytest.FixtureRequest, runner: Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QwenServer]:
    if runner is not V1 and request.param == KINDS[0]:
        pytest.skip("Qwen3-VL has the same code there, and Triton's interpreter is slow")
    folder = tmp_path_factory.mktemp(request.param)
    with qwen_server(request.param, runner, folder) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(photographs: Sequence[Image.Image]) -> dict[str, Image.Image]:
    """Portrait, landscape, small and square ones."""
    astronaut, coffee, cat, rocket = photographs
    return {
        "landscape": coffee,
        "portrait": rocket.resize((280, 480)),
        "small": cat.resize((130, 100)),
        "square": astronaut.resize((320, 320)),
        "wide": coffee.resize((620, 120)),
    }


@pytest.fixture(scope="module")
def video(photographs: Sequence[Image.Image]) -> list[Image.Image]:
    return [photographs[2].resize((200, 150)).rotate(7 * frame) for frame in range(6)]


def cases(
    pictures: dict[str, Image.Image], video: Sequence[Image.Image]
) -> list[tuple[str, list[Picture], dict[str, Any]]]:
    """Questions, with 1 to 3 images or a video, and options."""
    chosen: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("landscape",), {"budget": 1.0}),
        (("landscape",), {"budget": 64}),
        (("portrait",), {"budget": 0.25, "method": "fovea"}),
        (("wide",), {"budget": 5, "method": "random"}),
        (("small",), {"budget": 1000}),
        (("square",), {"budget": 1, "method": "context"}),
        (("landscape", "portrait"), {"budget": 40, "method": "vispruner"}),
        (("small", "wide", "square"), {"budget": 0.5, "method": "divprune"}),
        (("portrait", "portrait"), {"budget": 30, "method": "cdpruner"}),
        (("landscape", "small"), {"budget": 33, "positions": "compact"}),
        (("square", "portrait", "landscape"), {"budget": 0.1, "positions": "compact"}),
        (("wide",), {"budget": 1.0, "positions": "compact"}),
        (("portrait",), {"budget": 20, "method": "prunesid"}),  # in no raster order
    ]
    images = [
        (f"{QUESTION} {number}", [pictures[name] for name in names], options)
        for number, (names, options) in enumerate(chosen)
    ]
    videos = [
        ("What moves?", [list(video)], options)
        for options in ({"budget": 1.0}, {"budget": 7}, {"budget": 0.4, "method": "fovea"})
    ]
    return [*images, *videos]


async def ask_all(url: str, questions: Sequence[dict[str, Any]]) -> list[Answer]:
    """At the same time."""
    async with async_client(url) as client:
        sent = [client.chat.completions.create(**question) for question in questions]
        return [read(answer) for answer in await asyncio.gather(*sent)]


def test_engine_is_as_sure_of_every_token_as_transformers_given_the_same_rows(
    qwen: QwenServer,
    runner: Runner,
    pictures: dict[str, Image.Image],
    video: Sequence[Image.Image],
) -> None:
    asked = cases(pictures, video)
    # Triton's interpreter is slow: there the first four, every second of the others, and videos.
    assert_parity(qwen, asked if runner is V1 else [*asked[:4], *asked[5::2], asked[-2]])


@on_v1_alone
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * ("moe" in kind)) for kind in THIN]
)
def test_neighbours_that_share_the_code_are_as_sure(
    kind: Kind,
    runner: Runner,
    pictures: dict[str, Image.Image],
    video: Sequence[Image.Image],
    tmp_path: Path,
) -> None:
    with qwen_server(kind, runner, tmp_path) as running:
        assert_parity(running, cases(pictures, video)[::3])


@pytest.mark.slow
@on_v1_alone
@pytest.mark.parametrize("kind", THIN)
def test_neighbours_are_as_sure_of_all_and_keep_what_a_script_keeps(
    kind: Kind,
    runner: Runner,
    pictures: dict[str, Image.Image],
    video: Sequence[Image.Image],
    tmp_path: Path,
) -> None:
    with qwen_server(kind, runner, tmp_path) as running:
        assert_parity(running, cases(pictures, video))
        assert_keeps(running, pictures)
        assert_whole_is_stock(running, pictures, video, tmp_path / "stock")


@pytest.mark.slow
@on_v1_alone
@pytest.mark.parametrize("spread", SPREADS)
def test_two_ranks_answer_as_transformers(
    spread: str,
    runner: Runner,
    pictures: dict[str, Image.Image],
    video: Sequence[Image.Image],
    tmp_path: Path,
) -> None:
    arguments = [f"--{spread}-parallel-size=2"]
    with qwen_server("qwen3_vl", runner, tmp_path, arguments, **TWO_WORKERS) as running:
        assert_parity(running, cases(pictures, video)[::3])


def assert_parity(
    qwen: QwenServer, asked: Sequence[tuple[str, list[Picture], dict[str, Any]]]
) -> None:
    """Together, alone, and in transformers, requests have the same answers."""
    requests = [request(turn(question, some), options, 5) for question, some, options in asked]
    together = asyncio.run(ask_all(qwen.traced.url, requests))
    for (question, some, options), at_once in zip(asked, together, strict=True):
        answer, kept = qwen.kept(question, some, options, 5)
        assert answer.token_ids == at_once.token_ids
        assert answer.logprobs == pytest.approx(at_once.logprobs, abs=TOLERANCE)
        assert_follows(qwen.reference, question, some, options, kept, answer)


def assert_follows(
    reference: QwenReference,
    question: str,
    some: Sequence[Picture],
    options: dict[str, Any],
    kept: Sequence[Sequence[int]],
    answer: Answer,
) -> None:
    """Transformers is as sure of every token of an answer."""
    seen = [one if isinstance(one, Image.Image) else as_sent(one) for one in some]
    best, likely = reference.follow(
        reference.prompt(question, seen),
        seen,
        kept,
        answer.token_ids,
        original="positions" not in options,
    )
    assert answer.logprobs == pytest.approx(likely, abs=TOLERANCE), (question, options)
    assert list(answer.token_ids) == best


def test_prefix_that_is_kept_gives_the_same_answer(
    qwen: QwenServer, pictures: dict[str, Image.Image]
) -> None:
    some = [pictures["landscape"], pictures["portrait"]]
    options = {"budget": 0.75, "method": "random"}
    first = ask(qwen.traced.url, turn(QUESTION, some), options, 6)
    hits = _metric(qwen, "vllm:prefix_cache_hits_total")
    again = ask(qwen.traced.url, turn(QUESTION, some), options, 6)
    assert _metric(qwen, "vllm:prefix_cache_hits_total") > hits
    assert again.token_ids == first.token_ids
    assert again.logprobs == pytest.approx(first.logprobs, abs=TOLERANCE)


@on_v1_alone
def test_requests_that_are_preempted_are_answered_as_alone(
    qwen: QwenServer, pictures: dict[str, Image.Image]
) -> None:
    some = [pictures["landscape"], pictures["square"]]
    questions = [
        request(turn(f"{QUESTION} {number}", some), {"budget": 100 + number}, 160, ignore_eos=True)
        for number in range(12)
    ]
    before = _metric(qwen, "vllm:num_preemptions_total")
    for _ in range(3):  # how requests meet in the engine is not ours to say
        together = asyncio.run(ask_all(qwen.traced.url, questions))
        if _metric(qwen, "vllm:num_preemptions_total") > before:
            break
    else:
        pytest.fail("no request was preempted")
    for number in (0, 11):
        alone = asyncio.run(ask_all(qwen.traced.url, [questions[number]]))[0]
        assert together[number].token_ids == alone.token_ids
        assert together[number].logprobs == pytest.approx(alone.logprobs, abs=TOLERANCE)


@on_v1_alone
def test_adapter_on_the_language_model_is_followed(
    qwen: QwenServer,
    pictures: dict[str, Image.Image],
    video: Sequence[Image.Image],
    tmp_path: Path,
) -> None:
    """As if the checkpoint had its weights; tower and guidance are the model's."""
    merged = QwenReference(merge_adapter(qwen.folder, qwen.adapter, tmp_path / "merged"))
    for question, some, options in cases(pictures, video)[1::4]:
        plain, kept = qwen.kept(question, some, options, 5)
        adapted, kept_too = qwen.kept(question, some, options, 5, "adapter")
        assert kept_too == kept
        assert adapted.logprobs != pytest.approx(plain.logprobs, abs=0.01)
        assert_follows(merged, question, some, options, kept, adapted)


def _metric(qwen: QwenServer, name: str) -> float:
    lines = httpx.get(f"{qwen.traced.url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


@on_v1_alone
def test_whole_pictures_are_bit_identical_to_stock(
    qwen: QwenServer,
    pictures: dict[str, Image.Image],
    video: Sequence[Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert_whole_is_stock(qwen, pictures, video, tmp_path_factory.mktemp("stock"))


def assert_whole_is_stock(
    qwen: QwenServer,
    pictures: dict[str, Image.Image],
    video: Sequence[Image.Image],
    folder: Path,
) -> None:
    asked: list[list[Picture]] = [[pictures["landscape"]], [*pictures.values()][:3], [list(video)]]

    def answers(url: str, options: Any) -> list[Answer]:
        return [ask(url, turn(QUESTION, some), options, 8) for some in asked]

    qwen.traced.forget()
    ours = answers(qwen.traced.url, {"budget": 1.0})
    log = folder / "server.log"
    with serve(qwen.folder, plugin=False, arguments=qwen.arguments, log=log) as running:
        assert answers(running.url, None) == ours


@on_v1_alone
def test_usage_is_what_tokenize_counts(
    qwen: QwenServer, pictures: dict[str, Image.Image], video: Sequence[Image.Image]
) -> None:
    for question, some, options in cases(pictures, video)[1::3]:
        body = {
            "model": "model",
            "messages": [turn(question, some)],
            "mm_processor_kwargs": {"litelvlm": options},
        }
        counted = httpx.post(f"{qwen.traced.url}/tokenize", json=body, timeout=60).json()["count"]
        answer = ask(qwen.traced.url, turn(question, some), options, 1)
        assert answer.prompt_tokens == counted


@on_v1_alone
def test_shuffled_concurrent_requests_are_each_answered_as_alone(
    qwen: QwenServer, pictures: dict[str, Image.Image], video: Sequence[Image.Image]
) -> None:
    asked = cases(pictures, video)
    requests = [request(turn(question, some), options, 3) for question, some, options in asked]
    alone = [
        ask(qwen.traced.url, turn(question, some), options, 3) for question, some, options in asked
    ]
    order = [number % len(asked) for number in range(120)]
    random.Random(5).shuffle(order)
    qwen.traced.forget()
    together = asyncio.run(ask_all(qwen.traced.url, [requests[number] for number in order]))
    for number, answer in zip(order, together, strict=True):
        assert answer.prompt_tokens == alone[number].prompt_tokens
        assert answer.token_ids == alone[number].token_ids
        assert answer.logprobs == pytest.approx(alone[number].logprobs, abs=TOLERANCE)


@on_v1_alone
def test_every_method_keeps_what_an_independent_script_keeps(
    qwen: QwenServer, pictures: dict[str, Image.Image]
) -> None:
    assert_keeps(qwen, pictures)


def assert_keeps(qwen: QwenServer, pictures: dict[str, Image.Image]) -> None:
    traits = QwenFamily("Qwen").traits(None)
    methods = [name for name in offered_methods(traits) if name != "keep-all"]
    assert {*methods} == {*method_names()} - {"keep-all", "tome", "prumerge", "prumerge+"}
    combinations = [
        ("portrait", ["a rocket", "the sky at night"], 25),
        ("wide", ["a spoon"], 8),
        ("small", ["a cat"], 5),
    ]
    seen = {name: qwen.reference.see(pictures[name]) for name, _, _ in combinations}
    compared = []
    for method in methods:
        pruner = build_pruner(method, traits.parameters.get(method, {}))
        for name, texts, budget in combinations:
            options = {"method": method, "budget": budget, "texts": texts}
            _, [kept] = qwen.kept(QUESTION, [pictures[name]], options)
            scores = qwen.reference.scores(seen[name], texts if pruner.reads_text else [])
            _, rows, columns = seen[name].grid
            signals = Signals(
                images=1,
                patches=rows * columns,
                device=scores["features"].device,
                text_counts=[len(texts) if pruner.reads_text else 0],
                values={Signal(one): score[None] for one, score in scores.items()},
                row_length=columns,
                word_counts=[len(scores["word_cosine"])],
            )
            calls = Calls()
            expected = SLOW_METHODS[method](signals, budget, calls)
            if calls.closest > CLEAR:
                assert kept == expected, (method, name)
                compared.append(method)
    assert {*compared} == {*methods}
    assert len(compared) >= 40


BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "tome"}, "goes by tower as it is asked for; Qwen"),
    ({"method": "prumerge"}, "goes by last_attention, last_keys"),
    ({"method": "fovea", "guidance": "value"}, "goes by value as it is asked for"),
    ({"method": "litelvlm", "guidance": "value"}, "They can run: litelvlm, fovea"),
    ({"focus": 0.25}, "'focus' is 0.25, but images of Qwen"),
    ({"frame": "pad"}, "'frame' is \"pad\", but Qwen"),
    ({"budget": 0}, "'budget' is 0; allowed"),
    ({"budget": 1.5}, "'budget' is 1.5; allowed"),
    ({"budgets": 64}, "'budgets' is unknown"),
]


@on_v1_alone
@pytest.mark.parametrize(("options", "told"), BAD)
def test_options_that_cannot_be_are_refused_and_the_server_serves_on(
    qwen: QwenServer, pictures: dict[str, Image.Image], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadRequestError) as raised:
        ask(qwen.traced.url, user_turn(QUESTION, pictures["small"]), options)
    assert told in str(raised.value)
    assert ask(qwen.traced.url, user_turn(QUESTION, pictures["small"]), {"budget": 4}, 1)


@on_v1_alone
def test_prompts_that_cannot_be_are_refused_and_the_server_serves_on(
    qwen: QwenServer, pictures: dict[str, Image.Image]
) -> None:
    def refused(**body: Any) -> str:
        answer = httpx.post(
            f"{qwen.traced.url}/v1/chat/completions",
            json={"model": "model", "max_tokens": 1, **body},
            timeout=60,
        )
        assert answer.status_code == 400, answer.text
        return answer.text

    image = turn(QUESTION, [pictures["small"]])
    ending = "{{ '<|vision_start|><|image_pad|>' }}"
    assert "ends in an image" in refused(
        messages=[image], chat_template=ending, mm_processor_kwargs={"litelvlm": {"budget": 3}}
    )
    refused(messages=[turn(QUESTION, [[pictures["small"]] * 2, [pictures["small"]] * 2])])
    named = {"type": "image_url", "image_url": None, "uuid": "nobody knows it"}
    content = [named, {"type": "text", "text": QUESTION}]
    assert "not in any cache" in refused(messages=[{"role": "user", "content": content}])
    assert ask(qwen.traced.url, image, {"budget": 4}, 1)


@on_v1_alone
def test_picture_that_is_named_is_pruned_by_another_text(
    qwen: QwenServer, pictures: dict[str, Image.Image]
) -> None:
    def asked(question: str, sent: bool) -> Answer:
        message = turn(question, [pictures["portrait"]])
        message["content"][0]["uuid"] = "the rocket"
        if not sent:
            message["content"][0]["image_url"] = None
        return ask(qwen.traced.url, message, {"budget": 0.3}, 4)

    qwen.traced.forget()
    asked("What is it?", sent=True)
    named = asked("Is it day?", sent=False)
    qwen.traced.forget()
    again = asked("Is it day?", sent=True)
    assert (named.token_ids, named.prompt_tokens) == (again.token_ids, again.prompt_tokens)
    assert named.logprobs == pytest.approx(again.logprobs, abs=TOLERANCE)


@on_v1_alone
def test_example_asks_about_an_image_and_a_video(
    qwen: QwenServer,
    pictures: dict[str, Image.Image],
    video: Sequence[Image.Image],
    tmp_path: Path,
) -> None:
    pictures["landscape"].save(tmp_path / "photograph.png")
    film = cv2.VideoWriter(
        str(tmp_path / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 2.0, video[0].size
    )
    for frame in [*video, *video]:
        film.write(cv2.cvtColor(np.asarray(frame), cv2.COLOR_RGB2BGR))
    film.release()
    for name in ("photograph.png", "film.mp4"):
        common = [str(tmp_path / name), QUESTION, "--url", f"{qwen.traced.url}/v1"]
        counts = [
            prompt_tokens(run("openai_client.py", *common, "--max-tokens", "2", *budget))[0]
            for budget in (["--budget", "1.0"], ["--budget", "0.25"], ["--budget", "4"])
        ]
        assert counts == sorted(set(counts), reverse=True)
