"""What a client sends by whichever API: status and sentence, with and without an image."""

from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.client import anthropic_turn, data_url, user_turn
from tests.e2e.conftest import TracedServer, traced_server
from tests.e2e.runners import V1
from vllm_litelvlm.demo.checkpoint import Checkpoint

QUESTION = "Where is the red cup?"
GREEDY = {"max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def served(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TracedServer]:
    """Nothing here depends on the model runner."""
    variants = {"fast": {"budget": 64, "served_model_name": "quick"}}
    folder = tmp_path_factory.mktemp("ways-in")
    with traced_server(V1, checkpoint, folder, variants=variants, page=False) as running:
        yield running


def _chat(url: str | None) -> dict[str, Any]:
    return {"messages": [user_turn(QUESTION, *filter(None, [url]))], **GREEDY}


def _batch(url: str | None) -> dict[str, Any]:
    [turn] = _chat(url)["messages"]
    return {"messages": [[turn], [user_turn("Hello")]], **GREEDY}


def _completions(url: str | None) -> dict[str, Any]:
    assert url is None
    return {"prompt": QUESTION, **GREEDY}


def _responses(url: str | None) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "input_text", "text": QUESTION}]
    if url is not None:
        content.insert(0, {"type": "input_image", "image_url": url, "detail": "auto"})
    turns = [{"type": "message", "role": "user", "content": content}]
    return {"input": turns, "max_output_tokens": 2, "temperature": 0}


def _tokenize(url: str | None) -> dict[str, Any]:
    return {"messages": _chat(url)["messages"]}


def _tokenize_text(url: str | None) -> dict[str, Any]:
    assert url is None
    return {"prompt": QUESTION}


def _messages(url: str | None) -> dict[str, Any]:
    return {**_count_tokens(url), **GREEDY}


def _count_tokens(url: str | None) -> dict[str, Any]:
    return {"messages": [anthropic_turn(QUESTION, url)]}


def _scoring(url: str | None) -> dict[str, Any]:
    assert url is None
    return {"query": "Is it red?", "items": ["yes", "no"], "label_token_ids": [3, 4]}


WITHOUT_IMAGE = {
    "/v1/completions": _completions,
    "/tokenize": _tokenize_text,
    "/generative_scoring": _scoring,
}
WITH_IMAGE = {
    "/v1/chat/completions": _chat,
    "/v1/chat/completions/batch": _batch,
    "/v1/responses": _responses,
    "/tokenize#chat": _tokenize,
    "/v1/messages": _messages,
    "/v1/messages/count_tokens": _count_tokens,
}
#: How many tokens a prompt has, by each API.
COUNTS = {
    "/tokenize": ("count",),
    "/v1/messages": ("usage", "input_tokens"),
    "/v1/messages/count_tokens": ("input_tokens",),
    "/v1/responses": ("usage", "input_tokens"),
}

RIGHT = [
    {"budget": 64},
    {"budget": 64.0, "method": None, "texts": None},
    {"budget": None},
    {},
    None,
]
WRONG = [
    ({"budget": -5}, "'budget' is -5; allowed: a token count"),
    ({"budget": 577}, "'budget' is 577; allowed: at most 576"),
    ({"bugdet": 64}, "'bugdet' is unknown; allowed: budget,"),
    ({"budget": "64"}, "'budget' is \"64\"; allowed: a token count"),
    ({"budget": "64"}, "Write it without quotes: 64."),
    ({"method": "magic"}, "'method' is \"magic\"; allowed: litelvlm,"),
    ({"context": "true"}, "'context' is \"true\"; allowed: true or false"),
    ('{"budget": 64}', "Send the object itself, not a text that holds it."),
]
SPELLED = '{"mm_processor_kwargs": {"litelvlm": {"budget": 64}}}'
MISPLACED: list[tuple[dict[str, Any], str]] = [
    (
        {"mm_processor_kwargs": {"budget": 64}},
        f"stand directly in mm_processor_kwargs; write {SPELLED}",
    ),
    ({"mm_processor_kwargs": '{"litelvlm": {"budget": 64}}'}, SPELLED),
    (
        {"litelvlm": {"budget": 64}},
        f"'litelvlm' stands beside the request's fields; write {SPELLED}",
    ),
    ({"extra_body": {"litelvlm": {"budget": 64}}}, f"stand in 'extra_body', .* write {SPELLED}"),
    (
        {"extra_body": {"mm_processor_kwargs": {"litelvlm": {"budget": 64}}}},
        f"stand in 'extra_body', .* write {SPELLED}",
    ),
]


def post(served: TracedServer, way: str, body: dict[str, Any], **said: Any) -> httpx.Response:
    path = way.partition("#")[0]
    return httpx.post(f"{served.url}{path}", json={"model": "model", **body, **said}, timeout=120)


def options(value: object) -> dict[str, Any]:
    return {"mm_processor_kwargs": {"litelvlm": value}}


def comparable(response: httpx.Response) -> Any:
    """An answer without what differs from request to request."""
    assert response.status_code == 200, response.text
    answer = response.json()
    for name in ("id", "created", "created_at", "completed_at", "output", "model"):
        answer.pop(name, None)
    return answer


def refused(response: httpx.Response, sentence: str) -> None:
    assert response.status_code == 400, response.text
    before, _, after = sentence.partition(".*")
    message = response.json()["error"]["message"]
    assert before in message
    assert after in message


@pytest.mark.parametrize("way", [*WITH_IMAGE, *WITHOUT_IMAGE])
def test_options_without_an_image_are_checked_and_change_nothing(
    served: TracedServer, way: str
) -> None:
    body = {**WITH_IMAGE, **WITHOUT_IMAGE}[way](None)
    stock = comparable(post(served, way, body))
    for value in RIGHT:
        assert comparable(post(served, way, body, **options(value))) == stock
    for value, sentence in WRONG:
        refused(post(served, way, body, **options(value)), sentence)
    assert comparable(post(served, way, body)) == stock


@pytest.mark.parametrize("way", [*WITH_IMAGE])
def test_options_of_an_image_are_heard_by_every_api(
    served: TracedServer, way: str, photographs: Sequence[Image.Image]
) -> None:
    body = WITH_IMAGE[way](data_url(photographs[0]))
    counts = {}
    for budget in (576, 64, 64.0, None):
        answer = comparable(post(served, way, body, **options({"budget": budget})))
        for name in COUNTS.get(way.partition("#")[0], ("usage", "prompt_tokens")):
            answer = answer[name]
        counts[str(budget)] = answer
    assert counts["576"] - counts["64"] == 512
    assert counts["64"] == counts["64.0"]
    assert counts["None"] - counts["64"] == 192 - 64
    for value, sentence in WRONG:
        refused(post(served, way, body, **options(value)), sentence)


@pytest.mark.parametrize("way", [*WITH_IMAGE, *WITHOUT_IMAGE])
def test_options_in_the_wrong_place_are_refused_with_the_right_spelling(
    served: TracedServer, way: str, photographs: Sequence[Image.Image]
) -> None:
    url = data_url(photographs[0]) if way in WITH_IMAGE else None
    for with_image in dict.fromkeys([url, None]):
        body = {**WITH_IMAGE, **WITHOUT_IMAGE}[way](with_image)
        for said, sentence in MISPLACED:
            refused(post(served, way, body, **said), sentence)
        assert post(served, way, body, extra_body={"other": 1}).status_code == 200


def test_variant_is_served_by_a_whole_name_too(
    served: TracedServer, photographs: Sequence[Image.Image]
) -> None:
    url = data_url(photographs[0])
    named, whole = (
        post(served, "/v1/chat/completions", _chat(url), model=name).json()
        for name in ("model:fast", "quick")
    )
    assert (named["model"], whole["model"]) == ("model:fast", "quick")
    assert named["choices"] == whole["choices"]
    assert named["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    listed = httpx.get(f"{served.url}/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["model", "model:fast", "quick"]


def test_page_is_not_there_where_the_operator_wants_none(served: TracedServer) -> None:
    for path in ("", "/server", "/examples/scene-1.jpg"):
        assert httpx.get(f"{served.url}/litelvlm{path}").status_code == 404
    body = {"messages": [user_turn(QUESTION)]}
    assert httpx.post(f"{served.url}/litelvlm/kept", json=body).status_code == 404
