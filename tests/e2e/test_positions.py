"""Kept tokens at their own positions."""

import asyncio
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError
from PIL import Image

from tests.e2e.client import Answer, ask, async_client, data_url, read, request, user_turn
from tests.e2e.conftest import ARGUMENTS, TracedServer, traced_server
from tests.e2e.reference import Reference
from tests.e2e.runners import V1, V2, Runner, slow_on_v2
from tests.e2e.stock import Stock, answers
from tests.e2e.workplace import PROMPT, QUESTION, Workplace
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.server import ServerError, serve
from vllm_litelvlm.evaluation.backend import Question
from vllm_litelvlm.evaluation.server_backend import ServerBackend
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend
from vllm_litelvlm.pruning.registry import method_names

MODES = ["compact", "original"]
BUDGETS = [29, 64, 192, 400]
GUIDED = {"budget": 64, "texts": ["a cup"]}
TWO_IMAGES = PROMPT.replace("<image>", "<image> and <image>")


@pytest.mark.parametrize(
    ("runner", "chunk", "singly", "tokens"),
    [(V1, 100, 3, 40), (V2, 200, 1, 12), pytest.param(V2, 200, 3, 40, marks=pytest.mark.slow)],
    ids=str,
    indirect=["runner"],
    scope="session",
)
def test_engine_is_as_sure_of_every_token_as_transformers_with_explicit_positions(
    workplace: Workplace,
    reference: Reference,
    photographs: Sequence[Image.Image],
    chunk: int,
    singly: int,
    tokens: int,
) -> None:
    singles = [([image], budget) for image in range(singly) for budget in BUDGETS]
    pairs = [([0, 1], 64), ([2, 0], 150)]
    asked = [(*one, mode) for one in [*singles, *pairs] for mode in MODES]
    batch = [
        {
            "prompt": TWO_IMAGES if len(images) == 2 else PROMPT,
            "images": [workplace.images[image] for image in images],
            "options": {"budget": budget, "positions": mode},
            "tokens": tokens,
        }
        for images, budget, mode in asked
    ]
    [served] = workplace.run(
        [batch],
        engine={"max_num_batched_tokens": chunk, "enable_chunked_prefill": True},
        options={"positions": "original"},
    )
    for (images, budget, mode), sent, answer in zip(asked, batch, served, strict=True):
        pictures = [photographs[image] for image in images]
        # What stands between two images is the user's text too.
        text = QUESTION if len(images) == 1 else f"and {QUESTION}"
        kept = [reference.choose(picture, [text], budget).kept for picture in pictures]
        best, likely = reference.follow(
            sent["prompt"], pictures, kept, answer["token_ids"], mode == "original"
        )
        assert len(best) == tokens
        assert answer["token_ids"] == best, (images, budget, mode)
        assert answer["logprobs"] == pytest.approx(likely, abs=1e-4), (images, budget, mode)


@pytest.fixture(scope="module")
def placing(
    runner: Runner, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TracedServer]:
    """A server that was started for original positions."""
    folder = tmp_path_factory.mktemp("placing")
    with traced_server(runner, checkpoint, folder, positions="original") as running:
        yield running


@pytest.mark.parametrize("mode", MODES)
def test_keep_all_is_bit_identical_to_stock(
    placing: TracedServer, photographs: Sequence[Image.Image], stock: Stock, mode: str
) -> None:
    placing.forget()  # with a part from the prefix cache, some machines give other last bits
    assert stock.gives(answers(placing.url, photographs, {"budget": 576, "positions": mode}))


def test_positions_are_the_servers_unless_the_request_says_otherwise(
    placing: TracedServer, server: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    turn = user_turn(QUESTION, photographs[0])
    default, original, compact = (
        ask(placing.url, turn, {"budget": 64, **options}, 12)
        for options in ({}, {"positions": "original"}, {"positions": "compact"})
    )
    assert default == original
    assert default.token_ids != compact.token_ids
    assert ask(server.url, turn, {"budget": 64}, 12) == compact


async def test_concurrent_requests_of_both_modes_answer_as_each_does_alone(
    placing: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    urls = [data_url(image) for image in photographs[:3]]
    options = [
        {"budget": budget, "positions": mode, **method}
        for budget in (64, 192)
        for mode in MODES
        for method in ({}, {"method": "visionzip"}, {"method": "prumerge"}, {"method": "tome"})
    ]
    asked = [(url, one) for url in urls for one in options]

    def arguments(url: str, chosen: dict[str, Any]) -> dict[str, Any]:
        return request(user_turn(QUESTION, url), chosen, tokens=6)

    async with async_client(placing.url) as client:
        alone: list[Answer] = []
        for one in asked:
            placing.forget()
            alone.append(read(await client.chat.completions.create(**arguments(*one))))
        placing.forget()
        shuffled = [number % len(asked) for number in range(100)]
        random.Random(0).shuffle(shuffled)
        completions = await asyncio.gather(
            *(client.chat.completions.create(**arguments(*asked[one])) for one in shuffled)
        )
    for one, completion in zip(shuffled, completions, strict=True):
        answer = read(completion)
        assert answer.token_ids == alone[one].token_ids, asked[one][1]
        assert answer.logprobs == pytest.approx(alone[one].logprobs, abs=1e-3), asked[one][1]
    assert len({answer.logprobs for answer in alone}) == len(asked)


@slow_on_v2
@pytest.mark.parametrize("method", [name for name in method_names() if name != "vispruner"])
def test_every_method_places_its_tokens_as_transformers_does(
    placing: TracedServer,
    photographs: Sequence[Image.Image],
    method: str,
    beside: TransformersBackend,
) -> None:
    # VisPruner's choice turns on the last bit, which the two towers do not share.
    budget = 48 if method == "cdpruner" else 64
    options = {"method": method, "budget": budget, "positions": "original"}
    questions = [Question(image, QUESTION, options, 8) for image in photographs[:2]]
    served = ServerBackend(placing.url).answer(questions)
    for ours, theirs in zip(served, beside.answer(questions), strict=True):
        assert ours.token_ids == theirs.token_ids


def test_chat_goes_on_behind_where_the_whole_image_ends(
    placing: TracedServer, reference: Reference, photographs: Sequence[Image.Image]
) -> None:
    turns = [user_turn("Is there a dog?", photographs[2])]
    turns += [{"role": "assistant", "content": "No."}, {"role": "user", "content": QUESTION}]
    placing.forget()
    first = ask(placing.url, turns, {"budget": 192}, 12)
    traced = placing.selections()[-1]
    again = ask(placing.url, turns, {"budget": 192}, 12)  # out of the prefix cache
    prompt = f"USER: <image>\nIs there a dog? ASSISTANT: No. USER: {QUESTION} ASSISTANT:"
    expected = reference.generate(prompt, [photographs[2]], [traced["kept"]], 12, original=True)
    assert list(first.token_ids) == list(again.token_ids) == expected


def test_server_that_was_not_started_for_it_refuses_and_says_how_to(
    server: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    turn = user_turn(QUESTION, photographs[0])
    with pytest.raises(BadRequestError) as caught:
        ask(server.url, turn, {"budget": 64, "positions": "original"})
    assert "which this server was not started for" in str(caught.value)
    assert '{"litelvlm": {"positions": "original"}}' in str(caught.value)
    assert ask(server.url, turn, {"budget": 64, "positions": "compact"}, 1).token_ids


def of_tokens(placing: TracedServer, tokens: int, image: Image.Image) -> dict[str, Any]:
    """A turn whose prompt has nearly that many tokens, with 64 of the image."""

    def length(words: int) -> int:
        turn = user_turn("a " * words, image)
        return ask(placing.url, turn, {**GUIDED, "positions": "compact"}, 1).prompt_tokens

    few, more = length(100), length(200)
    return user_turn("a " * (100 + 100 * (tokens - few) // (more - few)), image)


def test_prompt_that_fits_only_pruned_is_refused_and_the_next_is_served(
    placing: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    turn = user_turn(QUESTION, photographs[0])
    long = of_tokens(placing, 4096 - 100, photographs[0])
    with pytest.raises(BadRequestError, match=r"take up \d+ positions; allowed: 4096"):
        ask(placing.url, long, GUIDED, 1)
    assert ask(placing.url, long, {**GUIDED, "positions": "compact"}, 1).token_ids
    assert ask(placing.url, turn, {"budget": 64}, 1).token_ids


def test_text_that_is_generated_past_the_last_position_does_not_end_the_server(
    placing: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    turn = user_turn(QUESTION, photographs[0])
    nearly = of_tokens(placing, 4096 - 20 - (576 - 64), photographs[0])
    answer = ask(placing.url, nearly, GUIDED, 100, ignore_eos=True)
    assert len(answer.token_ids) == 100
    assert ask(placing.url, turn, {"budget": 64}, 1).token_ids


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--pipeline-parallel-size=2"], "the first stage of a pipeline alone"),
        (
            ['--speculative-config={"method": "draft_model", "model": "MODEL", '
             '"num_speculative_tokens": 2}'],
            "do not reach draft models",
        ),
    ],
    ids=["pipeline", "draft-model"],
)  # fmt: skip
def test_server_that_could_not_place_them_does_not_start(
    checkpoint: Checkpoint, tmp_path: Path, arguments: list[str], told: str
) -> None:
    given = [argument.replace("MODEL", str(checkpoint.llava)) for argument in arguments]
    with pytest.raises(ServerError, match=re.escape(told)):
        serve(
            checkpoint.llava,
            clip_model=checkpoint.clip,
            options={"positions": "original"},
            arguments=[*ARGUMENTS, *given],
            log=tmp_path / "server.log",
        ).__enter__()
