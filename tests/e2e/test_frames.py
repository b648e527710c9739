"""Pictures that are no squares: cropped as their processor does, or padded."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from openai import BadRequestError
from PIL import Image

from tests.e2e.client import ask, data_url, user_turn
from tests.e2e.conftest import TracedServer
from tests.e2e.runners import on_v1_alone
from vllm_litelvlm.evaluation.backend import Question
from vllm_litelvlm.evaluation.server_backend import ServerBackend
from vllm_litelvlm.evaluation.transformers_backend import TransformersBackend
from vllm_litelvlm.vision.frame import padded, window

pytestmark = on_v1_alone

QUESTION = "Where is the red cup?"
PAD = {"frame": "pad"}


@pytest.fixture(scope="module")
def wide(photographs: Sequence[Image.Image]) -> Image.Image:
    """Coffee, 600 x 400: the middle 16 of 24 rows of patches."""
    assert photographs[1].size == (600, 400)
    return photographs[1]


@pytest.fixture(scope="module")
def inside(wide: Image.Image) -> set[int]:
    found = window(wide.size, 24)
    assert found is not None
    assert found.patches == 16 * 24
    return set(found.numbers())


def lines(server: TracedServer, ask_it: Callable[[], Any]) -> list[dict[str, Any]]:
    before = len(server.selections())
    ask_it()
    return server.selections()[before:]


@pytest.mark.parametrize("method", ["litelvlm", "fovea", "visionzip", "trim"])
def test_padded_picture_is_answered_as_transformers_does(
    server: TracedServer, beside: TransformersBackend, wide: Image.Image, method: str
) -> None:
    questions = [
        Question(image, QUESTION, {"method": method, "budget": 64, **PAD}, 8)
        for image in (wide, wide.rotate(90, expand=True))
    ]
    served = ServerBackend(server.url).answer(questions)
    for ours, theirs in zip(served, beside.answer(questions), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.prompt_tokens == theirs.prompt_tokens


def test_padding_is_never_kept_and_never_counted(
    server: TracedServer, wide: Image.Image, inside: set[int]
) -> None:
    turn = user_turn(QUESTION, wide)
    cropped = ask(server.url, turn, {"budget": 1.0}, 1).prompt_tokens
    for options, tokens in [
        ({"budget": 64}, 64),
        ({"budget": 0.5}, 192),
        ({"budget": 0.5, "method": "random"}, 192),
        ({"budget": 400}, 384),
        ({"method": "keep-all"}, 384),
    ]:
        server.forget()
        [line] = lines(server, lambda o=options: ask(server.url, turn, {**o, **PAD}, 1))
        assert len(line["kept"]) == tokens
        assert set(line["kept"]) <= inside
        answer = ask(server.url, turn, {**options, **PAD}, 1)
        assert cropped - answer.prompt_tokens == 576 - tokens


def test_layers_of_a_padded_picture_keep_no_padding(
    server: TracedServer, wide: Image.Image, inside: set[int]
) -> None:
    server.forget()
    options = {"method": "fovea", "budget": 64, "focus": 0.25, **PAD}
    found = lines(server, lambda: ask(server.url, user_turn(QUESTION, wide), options, 1))
    assert [line["layer"] for line in found] == ["base", "focus"]
    base, focus = (set(line["kept"]) for line in found)
    assert base | focus <= inside
    assert not base & focus
    assert len(base | focus) == 64


def test_pictures_of_one_request_have_each_a_window_of_its_own(
    server: TracedServer, wide: Image.Image, inside: set[int]
) -> None:
    server.forget()
    high, square = wide.rotate(90, expand=True), wide.crop((0, 0, 300, 300))
    turn = user_turn(QUESTION, wide, high, square)
    found = lines(server, lambda: ask(server.url, turn, {"budget": 0.25, **PAD}, 1))
    assert sorted(len(line["kept"]) for line in found) == [96, 96, 144]
    whole = ask(server.url, turn, {"method": "keep-all"}, 1).prompt_tokens
    padded_ones = ask(server.url, turn, {"method": "keep-all", **PAD}, 1).prompt_tokens
    assert whole - padded_ones == 2 * (576 - 384)


def test_frame_tells_pictures_apart_and_a_square_has_none(
    server: TracedServer, wide: Image.Image
) -> None:
    def said(image: Image.Image, options: dict[str, Any]) -> Any:
        server.forget()
        return ask(server.url, user_turn(QUESTION, image), {"budget": 64, **options})

    assert said(wide, PAD) != said(wide, {})
    square = padded(wide, (0.3, 0.3, 0.3))
    assert said(square, PAD) == said(square, {})


def test_named_picture_is_known_by_name_and_frame(server: TracedServer, wide: Image.Image) -> None:
    def named(question: str, frame: str, sent: bool) -> Any:
        part = {"type": "image_url", "image_url": {"url": data_url(wide)}, "uuid": "the coffee"}
        if not sent:
            part["image_url"] = None
        content = [part, {"type": "text", "text": question}]
        return ask(
            server.url, {"role": "user", "content": content}, {"budget": 0.5, "frame": frame}, 2
        )

    server.forget()
    named("What is it?", "pad", True)
    padded_one = named("Is it hot?", "pad", False)
    server.forget()
    assert named("Is it hot?", "pad", True).prompt_tokens == padded_one.prompt_tokens
    assert named("Is it hot?", "crop", True).prompt_tokens - padded_one.prompt_tokens == 288 - 192


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frame": "fill"}, '\'frame\' is "fill"; allowed: "crop" or "pad"'),
        ({"frame": "pad", "method": "tome"}, "\"pad\", but method 'tome' merges tokens inside"),
        ({"frame": "pad", "budget": 577}, "'budget' is 577; allowed: at most 576"),
    ],
)
def test_frame_that_cannot_be_is_refused(
    server: TracedServer, wide: Image.Image, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadRequestError) as raised:
        ask(server.url, user_turn(QUESTION, wide), options)
    assert told in str(raised.value)
