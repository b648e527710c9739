"""What a client of ``vllm serve MODEL --plugin litelvlm`` sees."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.client import Answer, ask, async_client, data_url, read, request, user_turn
from tests.e2e.conftest import TracedServer
from tests.e2e.reference import Reference
from tests.e2e.runners import on_v1_alone

TEXTS = [
    "What is on the left?",
    "Where is the red cup?",
    "Describe the scene in one sentence.",
    "How many people are there?",
    "Is there a dog?",
]


@pytest.mark.parametrize("budget", [1, 64, 128, 192, 575, 576])
def test_prompt_tokens_fall_by_exactly_the_pruned_tokens(
    server: Any, photographs: Sequence[Image.Image], budget: int
) -> None:
    whole = ask(server.url, user_turn(TEXTS[0], photographs[0]), {"method": "keep-all"}, 1)
    pruned = ask(server.url, user_turn(TEXTS[0], photographs[0]), {"budget": budget}, 1)
    assert whole.prompt_tokens - pruned.prompt_tokens == 576 - budget


def test_default_budget_is_a_third_of_the_tokens(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    default = ask(server.url, user_turn(TEXTS[0], photographs[0]), None, 1)
    named = ask(server.url, user_turn(TEXTS[0], photographs[0]), {"budget": 192}, 1)
    assert default == named


def test_every_image_of_a_request_gets_its_own_budget(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    one = ask(server.url, user_turn(TEXTS[0], photographs[0]), {"budget": 64}, 1)
    three = ask(server.url, user_turn(TEXTS[0], *photographs[:3]), {"budget": 64}, 1)
    separators = ask(server.url, user_turn(TEXTS[0], *photographs[:2]), {"budget": 64}, 1)
    between = separators.prompt_tokens - one.prompt_tokens - 64
    assert three.prompt_tokens == one.prompt_tokens + 2 * (64 + between)


def _combinations(photographs: Sequence[Image.Image]) -> list[Any]:
    sizes, budgets = [1, 2, 3, 5], itertools.cycle([29, 64, 128, 192, 300])
    return [
        (image, TEXTS[:size], next(budgets), variant)
        for image in range(len(photographs))
        for size in sizes
        for variant in ("paper", "reference")
    ]


@on_v1_alone
def test_kept_indices_equal_those_of_plain_transformers(
    server: Any, photographs: Sequence[Image.Image], reference: Reference
) -> None:
    combinations = _combinations(photographs)
    assert len(combinations) >= 20
    server.forget()
    for image, texts, budget, variant in combinations:
        before = len(server.selections())
        options = {"budget": budget, "texts": texts, "variant": variant}
        ask(server.url, user_turn("Look.", photographs[image]), options, 1)
        [traced] = server.selections()[before:]
        expected = reference.choose(photographs[image], texts, budget, variant)
        assert traced["kept"] == expected.kept, (image, len(texts), budget, variant)
        assert traced["guided"] == expected.guided


@pytest.mark.parametrize("budget", [64, 128])
def test_greedy_answers_equal_those_of_transformers_given_the_same_tokens(
    server: Any, photographs: Sequence[Image.Image], reference: Reference, budget: int
) -> None:
    for image, text in itertools.product(photographs[:3], TEXTS[:2]):
        served = ask(server.url, user_turn(text, image), {"budget": budget}, 16)
        kept = reference.choose(image, [text], budget).kept
        prompt = f"USER: <image>\n{text} ASSISTANT:"
        expected = reference.generate(prompt, [image], [kept], 16)
        assert list(served.token_ids) == expected


def test_greedy_answer_about_two_images_equals_that_of_transformers(
    server: Any, photographs: Sequence[Image.Image], reference: Reference
) -> None:
    images = list(photographs[1:3])
    served = ask(server.url, user_turn(TEXTS[1], *images), {"budget": 64}, 16)
    kept = [reference.choose(image, [TEXTS[1]], 64).kept for image in images]
    prompt = f"USER: <image>\n<image>\n{TEXTS[1]} ASSISTANT:"
    assert list(served.token_ids) == reference.generate(prompt, images, kept, 16)


@pytest.mark.parametrize(
    ("guide", "texts"),
    [("last", ["And the dog?"]), ("first", ["A cup?"]), ("all", ["A cup?", "And the dog?"])],
)
def test_chosen_turn_of_a_conversation_guides(
    server: Any, photographs: Sequence[Image.Image], guide: str, texts: list[str]
) -> None:
    conversation = [
        {"role": "system", "content": "Answer briefly."},
        user_turn("A cup?", photographs[0]),
        {"role": "assistant", "content": "Yes, a cup."},
        user_turn("And the dog?"),
    ]
    implicit = ask(server.url, conversation, {"budget": 64, "guide": guide})
    explicit = ask(server.url, conversation, {"budget": 64, "texts": texts})
    other = ask(server.url, conversation, {"budget": 64, "texts": ["something else entirely"]})
    assert implicit == explicit
    assert implicit != other


def test_instruction_of_a_rendered_prompt_guides_as_the_same_named_text(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    server.forget()
    ask(server.url, user_turn("Is there a dog?", photographs[0]), {"budget": 64})
    by_turn = server.selections()[-1]
    ask(server.url, user_turn("x", photographs[0]), {"budget": 64, "texts": "Is there a dog?"})
    by_text = server.selections()[-1]
    assert by_turn["text_ids"] == by_text["text_ids"]


def test_conversation_grows_over_turns_with_other_texts_budgets_and_images(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    conversation: list[dict[str, Any]] = []
    for turn, (budget, text) in enumerate(zip([64, 192, 29, 576], TEXTS, strict=False)):
        conversation.append(user_turn(text, photographs[turn]))
        answer = ask(server.url, conversation, {"budget": budget})
        server.forget()
        assert ask(server.url, conversation, {"budget": budget}) == answer
        conversation.append({"role": "assistant", "content": f"Answer {turn}."})


@on_v1_alone
async def test_concurrent_requests_answer_as_when_sent_alone(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    combinations = list(itertools.product(range(4), TEXTS, (64, 128, 192)))
    urls = [data_url(image) for image in photographs]

    def arguments(image: int, text: str, budget: int) -> dict[str, Any]:
        # The same prompt for every text: only the options tell the requests apart.
        return request(
            user_turn("Answer.", urls[image]), {"budget": budget, "texts": [text]}, tokens=6
        )

    async with async_client(server.url) as client:
        alone: dict[Any, Answer] = {}
        for combination in combinations:
            server.forget()
            alone[combination] = read(
                await client.chat.completions.create(**arguments(*combination))
            )
        assert len({answer.token_ids for answer in alone.values()}) > len(combinations) // 2
        server.forget()
        shuffled = [combinations[number % len(combinations)] for number in range(200)]
        random.Random(0).shuffle(shuffled)
        answers = await asyncio.gather(
            *(client.chat.completions.create(**arguments(*one)) for one in shuffled)
        )
    for combination, completion in zip(shuffled, answers, strict=True):
        answer = read(completion)
        assert answer.token_ids == alone[combination].token_ids, combination
        assert answer.logprobs == pytest.approx(alone[combination].logprobs, abs=1e-3)


def test_client_given_uuid_does_not_weaken_cache_identity(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    def send(text: str) -> Answer:
        turn = user_turn("Answer.", photographs[0])
        turn["content"][0]["uuid"] = "the-same-for-both"
        return ask(server.url, turn, {"budget": 64, "texts": [text]})

    first, second = send(TEXTS[0]), send(TEXTS[1])
    server.forget()
    assert first != second
    assert send(TEXTS[1]) == second


def test_metrics_count_images_tokens_and_seconds(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    names = [
        'litelvlm_images_total{method="litelvlm"}',
        'litelvlm_visual_tokens_in_total{method="litelvlm"}',
        'litelvlm_visual_tokens_kept_total{method="litelvlm"}',
        "litelvlm_guidance_seconds_count",
        "litelvlm_selection_seconds_count",
    ]
    server.forget()
    before = [value(name) for name in names]
    ask(server.url, user_turn("Count me.", *photographs[:2]), {"budget": 64}, 1)
    grown = [value(name) - start for name, start in zip(names, before, strict=True)]
    assert grown[:3] == [2, 2 * 576, 2 * 64]
    assert grown[3] >= 1
    assert grown[4] == grown[3]
    assert value("litelvlm_guidance_seconds_sum") > 0


def test_image_without_any_text_is_pruned_by_context(
    server: Any, photographs: Sequence[Image.Image]
) -> None:
    turn = user_turn("", photographs[0])
    del turn["content"][1]
    server.forget()
    before = len(server.selections())
    silent = ask(server.url, turn, {"budget": 64}, 1)
    [traced] = server.selections()[before:]
    assert traced["text_ids"] == []
    assert not any(traced["guided"])
    whole = ask(server.url, turn, {"budget": 576}, 1)
    assert whole.prompt_tokens - silent.prompt_tokens == 576 - 64


def test_text_only_request_without_options_is_served(server: Any) -> None:
    assert ask(server.url, user_turn("Hello?")).token_ids


def test_text_guides_as_clip_was_trained_to_read_it(
    server: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    """Typographic apostrophes, ligatures and entities, as phones and web pages write them."""
    said = []
    for text in ("the player's fish & chips", "the player’s ﬁsh &amp; chips"):
        server.forget()
        before = len(server.selections())
        ask(server.url, user_turn("What?", photographs[0]), {"budget": 64, "texts": [text]}, 1)
        said.append([line["text_ids"] for line in server.selections()[before:]])
    assert said[0] == said[1]
    assert len(said[0]) == 1


def test_trace_has_a_line_for_images_that_stay_whole_or_come_from_a_cache(
    server: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    def kept(options: dict[str, Any]) -> list[int]:
        before = len(server.selections())
        ask(server.url, user_turn("What?", photographs[3]), options, 1)
        return [len(line["kept"]) for line in server.selections()[before:]]

    server.forget()
    whole = {"method": "keep-all"}
    assert kept(whole) == [576]
    assert kept(whole) == []  # vLLM's own caches have it
    server.forget()
    assert [kept({"budget": 64}), kept({"budget": 32}), kept(whole)] == [[64], [32], [576]]
