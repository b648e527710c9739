"""Tokens in two layers: a base that no text touches, and a focus that every turn brings."""

import asyncio
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image

from tests.e2e.client import Answer, ask, async_client, data_url, read, request, user_turn
from tests.e2e.conftest import TracedServer, traced_server
from tests.e2e.reference import Reference
from tests.e2e.runners import V1, V2, Runner, on_v1_alone
from tests.e2e.test_caches import Counts
from tests.e2e.workplace import Workplace
from vllm_litelvlm.demo.checkpoint import Checkpoint

MODES = ["compact", "original"]
LAYERS = {"method": "fovea", "focus": 0.25}
#: Conversations about images 0, 1, ...: ``[B0]`` is a base, ``[F0 words]`` a focus on it.
CONVERSATIONS = [
    "USER: [B0][F0 Where is the red cup?]\nWhere is the red cup? ASSISTANT:",
    "USER: [B0]\n[B1][F0 Which is larger?][F1 Which is larger?]\nWhich is larger? ASSISTANT:",
    "USER: [B0][B0][F0 The same?][F0 The same?]\nThe same? ASSISTANT:",
    "USER: [B1][F1 A dog?]\nA dog? ASSISTANT: No. USER: [F1 A cup?]A cup? ASSISTANT: Yes. "
    "USER: [F1 Where, and how large is it?]Where, and how large is it? ASSISTANT:",
    "USER: [B0][F0 A dog?]\nA dog? ASSISTANT: No. "
    "USER: [B2][F0 And here?][F2 And here?]\nAnd here? ASSISTANT:",
]
BLOCK = 32
MARK = re.compile(r"\[(B|F)(\d)(?: ([^\]]*))?\]")


def as_sent(conversation: str) -> tuple[str, list[int]]:
    """The prompt with one placeholder an image, and the images."""
    images = [int(mark[2]) for mark in MARK.finditer(conversation) if mark[1] == "B"]
    return MARK.sub(lambda mark: "<image>" if mark[1] == "B" else "", conversation), images


def items_of(reference: Reference, conversation: str) -> tuple[list[int], list[re.Match[str]]]:
    """Token ids with a placeholder for every base and focus, and what each is."""
    tokenizer = reference.processor.tokenizer
    placeholder = tokenizer.convert_tokens_to_ids("<image>")
    ids = list(tokenizer(as_sent(conversation)[0])["input_ids"])
    marks = list(MARK.finditer(conversation))
    for number, mark in enumerate(marks):
        if mark[1] == "F":
            before = as_sent(conversation[: mark.start()])[0].rstrip()
            focuses = sum(one[1] == "F" for one in marks[:number])
            ids.insert(len(tokenizer(before)["input_ids"]) + focuses, placeholder)
    return ids, marks


def expected(
    reference: Reference,
    photographs: Sequence[Image.Image],
    conversation: str,
    budget: int,
    answer: list[int],
    original: bool,
) -> tuple[list[int], list[float]]:
    """What transformers says, given the tokens of the method's description."""
    ids, marks = items_of(reference, conversation)
    placeholder = reference.processor.tokenizer.convert_tokens_to_ids("<image>")
    pictures, kept = [], []
    within: list[int | None] = []
    bases: list[tuple[int, str, list[int]]] = []  # number, image and patches
    run: dict[str, int] = {}
    tokens, waiting = 0, list(enumerate(marks))
    for token in ids:
        if token != placeholder:
            tokens += 1
            run = {}
            continue
        number, mark = waiting.pop(0)
        picture = photographs[int(mark[2])]
        pictures.append(picture)
        if mark[1] == "B":
            base = reference.fovea(picture, [], base_tokens(tokens, budget), (0, 4))
            bases.append((number, mark[2], base))
            kept.append(base)
            within.append(None)
            run = {}
        else:
            own = [one for one in bases if one[1] == mark[2]]
            below, _, base = own[run.get(mark[2], 0)]
            run[mark[2]] = run.get(mark[2], 0) + 1
            kept.append(reference.fovea(picture, [mark[3]], budget - len(base), (32, 4), base))
            within.append(below)
        tokens += len(kept[-1])
    return reference.follow(ids, pictures, kept, answer, original, within)


def base_tokens(start: int, budget: int) -> int:
    """Three quarters of the budget, or up to the nearest end of a block if the rest is fair."""
    focus = int(budget * 0.25 + 0.5)
    asked = budget - focus
    fair = [
        base
        for base in range(1, budget)
        if (start + base) % BLOCK == 0
        and abs(base - asked) < BLOCK
        and focus / 4 <= budget - base <= 2 * focus
    ]
    return min(fair, key=lambda base: (abs(base - asked), -base), default=asked)


@pytest.mark.parametrize(
    ("runner", "chunk"), [(V1, 20), (V2, 40)], ids=str, indirect=["runner"], scope="session"
)
def test_engine_is_as_sure_of_every_token_as_transformers_given_the_same_tokens_in_order(
    workplace: Workplace, reference: Reference, photographs: Sequence[Image.Image], chunk: int
) -> None:
    asked = [
        (conversation, budget, mode)
        for conversation in CONVERSATIONS
        for budget in ([64] if workplace.runner is V2 else [29, 64])
        for mode in MODES
    ]
    asked += [(CONVERSATIONS[0], 192, mode) for mode in MODES]
    batch = []
    for conversation, budget, mode in asked:
        prompt, images = as_sent(conversation)
        batch.append(
            {
                "prompt": prompt,
                "images": [workplace.images[image] for image in images],
                "options": {**LAYERS, "budget": budget, "positions": mode},
                "tokens": 8,
            }
        )
    [served] = workplace.run(
        [batch],
        engine={
            "max_num_batched_tokens": chunk,
            "enable_chunked_prefill": True,
            "block_size": BLOCK,
        },
        options={"positions": "original"},
    )
    for (conversation, budget, mode), answer in zip(asked, served, strict=True):
        best, likely = expected(
            reference, photographs, conversation, budget, answer["token_ids"], mode == "original"
        )
        assert answer["token_ids"] == best, (conversation, budget, mode)
        assert answer["logprobs"] == pytest.approx(likely, abs=1e-4), (conversation, budget, mode)


@pytest.fixture(scope="module")
def layered(
    runner: Runner, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TracedServer]:
    """A server whose requests are in two layers unless they say otherwise."""
    folder = tmp_path_factory.mktemp("layered")
    arguments = [
        "--block-size=32",
        "--enable-prompt-tokens-details",
        '--limit-mm-per-prompt={"image": 6}',
    ]
    options = {**LAYERS, "positions": "original"}
    with traced_server(runner, checkpoint, folder, arguments, **options) as running:
        yield running


def lengths(url: str, messages: Any, options: dict[str, Any]) -> tuple[int, int]:
    """Tokens of a prompt, and those of them that were in the prefix cache."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        usage = client.chat.completions.create(**request(messages, options, 1)).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0


def computed(url: str, messages: Any, options: dict[str, Any]) -> int:
    """Prompt tokens that were not in the prefix cache."""
    prompt, cached = lengths(url, messages, options)
    return prompt - cached


@on_v1_alone
def test_all_but_the_first_of_eight_texts_compute_focus_and_question_alone(
    layered: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    layered.forget()
    image = photographs[3].rotate(180)  # nobody else's
    counts = Counts(layered.url)
    things = ["cup", "dog", "car", "hat", "tree", "bird", "boat", "shoe"]
    turns = [user_turn(f"Where is the {thing}?", image) for thing in things]
    whole, *others = (lengths(layered.url, turn, {"budget": 144}) for turn in turns)
    base, *focuses = layered.selections()[-9:]
    assert (base["layer"], base["text_ids"]) == ("base", [])
    assert all(focus["layer"] == "focus" for focus in focuses)
    [cached] = {cached for _, cached in others}
    assert cached % BLOCK == 0
    assert 0 <= cached - len(base["kept"]) < BLOCK  # template and base, and nothing else
    assert whole[1] == 0
    # The tower ran for the first text alone: its two items are one image.
    queries, hits = counts.new()["feature"]
    assert queries - hits == 1


@on_v1_alone
@pytest.mark.parametrize("budget", [288, 192])
def test_chat_that_gains_an_image_a_turn_computes_no_more_than_with_whole_images(
    layered: TracedServer, photographs: Sequence[Image.Image], budget: int
) -> None:
    turned = [image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for image in photographs]
    images = [*photographs[:3], *turned[:3]]

    def chat(options: dict[str, Any]) -> int:
        layered.forget()
        messages: list[dict[str, Any]] = []
        tokens = 0
        for number, image in enumerate(images):
            messages.append(user_turn(f"What about number {number}?", image))
            tokens += computed(layered.url, messages, options)
            messages.append({"role": "assistant", "content": "That."})
        return tokens

    assert chat({"budget": budget}) <= chat({"method": "keep-all"})


@on_v1_alone
def test_turns_of_a_chat_find_all_that_came_before(
    layered: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    layered.forget()
    messages, new = [user_turn("Is there a dog?", photographs[1])], []
    for turn in range(4):
        new.append(computed(layered.url, messages, {"budget": 64}))
        messages += [
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": f"And is there a cup, or {turn} of them?"},
        ]
    lines = layered.selections()[-5:]
    assert [line["layer"] for line in lines] == ["base", *4 * ["focus"]]
    # A turn brings 16 tokens or so and its words, behind what no whole block holds.
    assert new[0] > 64
    assert all(tokens < 32 + 16 + 32 for tokens in new[1:])
    kept = [set(line["kept"]) for line in lines]
    assert all(kept[0].isdisjoint(focus) for focus in kept[1:])


@on_v1_alone
async def test_shuffled_concurrent_requests_answer_as_each_does_alone(
    layered: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    urls = [data_url(image) for image in photographs[:3]]
    texts = [f"Where is the {thing}?" for thing in ("cup", "dog", "car")]
    options: list[dict[str, Any]] = [
        {"budget": budget, "positions": mode, **method}
        for budget in (64, 192)
        for mode in MODES
        for method in ({}, {"focus": 0}, {"method": "litelvlm", "focus": 0.5}, {"method": "tome"})
    ]
    draw = random.Random(3)
    asked = [(urls[n % 3], texts[n // 3 % 3], draw.choice(options)) for n in range(45)]

    def arguments(url: str, text: str, chosen: dict[str, Any]) -> dict[str, Any]:
        return request(user_turn(text, url), chosen, tokens=4)

    async with async_client(layered.url) as client:
        alone: list[Answer] = []
        for one in asked:
            layered.forget()
            alone.append(read(await client.chat.completions.create(**arguments(*one))))
        layered.forget()
        shuffled = [number % len(asked) for number in range(200)]
        draw.shuffle(shuffled)
        completions = await asyncio.gather(
            *(client.chat.completions.create(**arguments(*asked[one])) for one in shuffled)
        )
    for one, completion in zip(shuffled, completions, strict=True):
        answer = read(completion)
        assert answer.token_ids == alone[one].token_ids, asked[one][1:]
        assert answer.prompt_tokens == alone[one].prompt_tokens
        assert answer.logprobs == pytest.approx(alone[one].logprobs, abs=1e-3), asked[one][1:]


@on_v1_alone
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "random", "focus": 0.5}, "method 'random' does not choose in layers; these do"),
        ({"budget": 1}, "comes to 1 of 1 tokens and leaves none for a base"),
        ({"focus": 1}, "'focus' is 1; allowed: a number from 0"),
        ({"focus": "half"}, "'focus' is \"half\"; allowed: a number from 0"),
    ],
)
def test_focus_that_cannot_be_is_refused_and_the_next_request_is_served(
    layered: TracedServer,
    photographs: Sequence[Image.Image],
    options: dict[str, Any],
    told: str,
) -> None:
    turn = user_turn("Where is the cup?", photographs[0])
    with pytest.raises(BadRequestError, match=re.escape(told)):
        ask(layered.url, turn, options)
    assert ask(layered.url, turn, {"method": "random"}, 1).token_ids  # the focus is fovea's
    assert ask(layered.url, turn, {"budget": 64}, 1).token_ids


def act(url: str, draw: random.Random, urls: Sequence[str]) -> None:
    """Something else that a client or an operator does."""
    turn = user_turn(draw.choice(["A cup?", "A hat?", "A dog?"]), draw.choice(urls))
    kind = draw.choice(["count", "refused", "reset", "reset", "many texts"])
    if kind == "count":
        body = {"model": "model", "messages": [turn]}
        httpx.post(f"{url}/tokenize", json=body, timeout=60).raise_for_status()
    elif kind == "refused":
        with pytest.raises(BadRequestError):
            ask(url, turn, {"budget": 0})
    elif kind == "reset":
        cache = draw.choice(["mm", "encoder", "prefix"])
        httpx.post(f"{url}/reset_{cache}_cache", timeout=60).raise_for_status()
    else:
        ask(url, turn, {"texts": ["a cup", "a dog"], "budget": draw.choice([29, 64])}, 1)


@on_v1_alone
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (None, {}),
        (
            ["--no-enable-prefix-caching", "--mm-processor-cache-gb=0.006"],
            {"feature_cache_gb": 0, "pixel_cache_gb": 0, "text_cache": 1},
        ),
        (["--mm-processor-cache-gb=0.006", "--mm-processor-cache-type=shm"], {}),
    ],
    ids=["as-it-is", "small-caches", "small-shared-cache"],
)
def test_no_sequence_of_requests_counts_and_resets_changes_an_answer(
    runner: Runner,
    checkpoint: Checkpoint,
    tmp_path: Path,
    layered: TracedServer,
    photographs: Sequence[Image.Image],
    arguments: list[str] | None,
    options: dict[str, Any],
) -> None:
    draw = random.Random(0)
    urls = [data_url(image) for image in photographs[:3]]
    turns = [
        [user_turn("Where is the cup?", urls[0])],
        [user_turn("A dog?", urls[1], urls[0])],
        [
            user_turn("A dog?", urls[1]),
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Where is the cup?"},
        ],
    ]
    asked = [
        (turn, chosen)
        for turn in turns
        for chosen in ({"budget": 64}, {"budget": 29, "method": "litelvlm"}, {"focus": 0})
    ]
    own = {**LAYERS, "positions": "original", **options}
    with (
        nullcontext(layered)
        if arguments is None
        else traced_server(runner, checkpoint, tmp_path, [*arguments, "--block-size=32"], **own)
    ) as running:
        alone = []
        for one in asked:
            running.forget()
            alone.append(ask(running.url, *one, 4))
        for number in draw.choices(range(len(asked)), k=40):
            act(running.url, draw, urls)
            answer = ask(running.url, *asked[number], 4)
            assert answer.token_ids == alone[number].token_ids, asked[number][1]
            assert answer.prompt_tokens == alone[number].prompt_tokens
            assert answer.logprobs == pytest.approx(alone[number].logprobs, abs=1e-3)
