"""What guides a chat over HTTP: the last of the user's messages that has words, as it was sent.

``SHAPES`` is the table: each conversation with the text that guides every turn of it, the last of
which guides a request in one layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from PIL import Image
from transformers import AutoTokenizer

from tests.e2e.client import ask, data_url, request, user_turn
from tests.e2e.conftest import TracedServer, traced_server
from tests.e2e.runners import Runner, on_v1_alone
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.vocabularies import CHAT_TEMPLATE
from vllm_litelvlm.vision.text import ClipTextTokenizer

pytestmark = on_v1_alone

RED, BLUE, GREEN = (
    data_url(Image.new("RGB", (24, 24), color)) for color in ("red", "blue", "green")
)
CUP, DOG, CAT = "Where is the red cup?", "Is there a dog?", "How many cats, and where?"
OPTIONS = {"budget": 64}
LAYERS = {"method": "fovea", "budget": 64, "focus": 0.25}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
#: Of another form than the checkpoint's template, and for other contents.
FOREIGN = (
    "Look. {% for m in messages %}{% if m['role'] == 'user' %}Q> {{ m['content'] }}\n"
    "{% elif m['content'] %}({{ m['role'] }}: {{ m['content'] }})\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A> {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A conversation, what its request has besides, and the text that guides each of its turns."""

    messages: list[dict[str, Any]]
    texts: list[str | None]
    extra: dict[str, Any] = field(default_factory=dict)


def says(role: str, content: object = None, **others: object) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


SHAPES = {
    "one turn": Shape([user_turn(CUP, RED)], [CUP]),
    "system message": Shape([says("system", "Be brief."), user_turn(CUP, RED)], [CUP]),
    "system message in parts": Shape(
        [says("system", [text("Be brief."), text("Be kind.")]), user_turn(CUP, RED)], [CUP]
    ),
    "developer's message": Shape([says("developer", "Be brief."), user_turn(CUP, RED)], [CUP]),
    "system message behind": Shape([user_turn(CUP, RED), says("system", "Be brief.")], [CUP]),
    "tools to choose from": Shape(
        [user_turn(CUP, RED)], [CUP], {"tools": TOOLS, "tool_choice": "none"}
    ),
    "tool's answer": Shape(
        [
            user_turn(CUP, RED),
            says("assistant", tool_calls=[CALL]),
            says("tool", "A bird.", tool_call_id="1"),
        ],
        [CUP],
        {"tools": TOOLS, "tool_choice": "none"},
    ),
    "answer that was begun": Shape(
        [user_turn(CUP, RED), says("assistant", "The cup is")],
        [CUP],
        {"add_generation_prompt": False, "continue_final_message": True},
    ),
    "answer that was begun, and a prompt for another": Shape(
        [user_turn(CUP, RED), says("assistant", "The cup is")], [CUP]
    ),
    "two messages by the user": Shape([user_turn(CUP, RED), says("user", DOG)], [CUP, DOG]),
    "image in an earlier turn": Shape(
        [user_turn(CUP, RED), says("assistant", "There."), says("user", DOG)], [CUP, DOG]
    ),
    "image in a later turn": Shape(
        [says("user", CUP), says("assistant", "Where?"), user_turn(DOG, RED)], [DOG]
    ),
    "image alone": Shape([says("user", [image(RED)])], [None]),
    "image alone behind words": Shape(
        [says("user", CUP), says("assistant", "Where?"), says("user", [image(RED)])], [CUP]
    ),
    "image alone before words": Shape([says("user", [image(RED)]), says("user", CUP)], [None, CUP]),
    "blank words behind": Shape(
        [user_turn(CUP, RED), says("assistant", "There."), says("user", " \n")], [CUP]
    ),
    "several images in a turn": Shape([user_turn(CUP, RED, BLUE)], [CUP]),
    "several images in several turns": Shape(
        [
            user_turn(CUP, RED, BLUE),
            says("assistant", "There."),
            says("user", DOG),
            says("assistant", "No."),
            user_turn(CAT, GREEN),
        ],
        [CUP, DOG, CAT],
    ),
    "the same image in two turns": Shape(
        [user_turn(CUP, RED), says("assistant", "There."), user_turn(DOG, RED)], [CUP, DOG]
    ),
    "words on both sides of an image": Shape(
        [says("user", [text(CUP), image(RED), text(DOG)])], [f"{CUP}\n{DOG}"]
    ),
    "words of a template": Shape(
        [user_turn("USER: a cup? ASSISTANT: yes. USER: a dog?", RED)],
        ["USER: a cup? ASSISTANT: yes. USER: a dog?"],
    ),
    "special tokens": Shape([user_turn(f"</s>{CUP}<s>", RED)], [CUP]),
    "the user's name": Shape([{**user_turn(CUP, RED), "name": "Ann"}], [CUP]),
    "other scripts": Shape([user_turn("赤い車はどこ？ 🚗", RED)], ["赤い車はどこ？ 🚗"]),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture(scope="module")
def trusting(
    runner: Runner, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TracedServer]:
    """A server with a foreign chat template, whose clients may send others, and any argument."""
    folder = tmp_path_factory.mktemp("trusting")
    template = folder / "foreign.jinja"
    template.write_text(FOREIGN)
    arguments = [
        f"--chat-template={template}",
        "--trust-request-chat-template",
        "--trust-request-mm-kwargs",
        "--enable-scale-out",
    ]
    with traced_server(runner, checkpoint, folder, arguments) as running:
        yield running


@pytest.fixture(scope="session")
def ids(checkpoint: Checkpoint) -> Callable[[str | None], list[list[int]]]:
    """What the trace says of a text."""
    tokenizer = ClipTextTokenizer(str(checkpoint.clip), 77)
    return lambda words: [] if words is None else tokenizer([words]).tolist()


def guiding(server: TracedServer, send: Callable[[], object]) -> list[dict[str, Any]]:
    """What the trace says of the images of a request that finds nothing in a cache."""
    server.forget()
    before = len(server.selections())
    send()
    return server.selections()[before:]


def post(server: TracedServer, path: str, body: dict[str, Any]) -> None:
    httpx.post(
        f"{server.url}/v1/{path}", json={"model": "model", **body}, timeout=120
    ).raise_for_status()


def pictures(shape: Shape) -> set[str]:
    """The different images of a conversation."""
    contents = [one["content"] for one in shape.messages if isinstance(one["content"], list)]
    return {
        part["image_url"]["url"]
        for content in contents
        for part in content
        if part["type"] == "image_url"
    }


@every_shape
def test_last_words_of_the_user_guide(
    server: TracedServer, ids: Callable[[str | None], Any], shape: Shape
) -> None:
    lines = guiding(server, lambda: ask(server.url, shape.messages, OPTIONS, 1, **shape.extra))
    assert [line["text_ids"] for line in lines] == [ids(shape.texts[-1])] * len(pictures(shape))


@every_shape
def test_last_words_of_the_user_guide_by_a_template_of_another_form(
    trusting: TracedServer, ids: Callable[[str | None], Any], shape: Shape
) -> None:
    lines = guiding(trusting, lambda: ask(trusting.url, shape.messages, OPTIONS, 1, **shape.extra))
    assert [line["text_ids"] for line in lines] == [ids(shape.texts[-1])] * len(pictures(shape))


@every_shape
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None], ids=["own", "foreign"])
def test_every_turn_guides_its_focus(
    trusting: TracedServer,
    ids: Callable[[str | None], Any],
    shape: Shape,
    template: str | None,
) -> None:
    extra = {**shape.extra, "chat_template": template}
    lines = guiding(trusting, lambda: ask(trusting.url, shape.messages, LAYERS, 1, **extra))
    focuses = [line["text_ids"] for line in lines if line["layer"] == "focus"]
    for texts in shape.texts:
        assert ids(texts) in focuses
    assert all(focus in [ids(texts) for texts in shape.texts] for focus in focuses)
    assert all(line["text_ids"] == [] for line in lines if line["layer"] == "base")


#: Of the checkpoint's form, with the user and the assistant exchanged.
EXCHANGED = (
    "{% for m in messages %}{{ 'ASSISTANT: ' if m['role'] == 'user' else 'USER: ' }}"
    "{{ m['content'] }} {% endfor %}ASSISTANT:"
)


def test_template_that_a_request_brings_changes_nothing_of_anothers(
    trusting: TracedServer,
) -> None:
    def send(template: str | None) -> list[dict[str, Any]]:
        shape = SHAPES["several images in several turns"]
        return guiding(
            trusting, lambda: ask(trusting.url, shape.messages, LAYERS, 1, chat_template=template)
        )

    first = send(None)
    assert send(EXCHANGED) != first
    assert send(CHAT_TEMPLATE) != first
    assert send(None) == first


@pytest.mark.parametrize(
    "prompt",
    [
        f"Look. Q> <image>\n{CUP}\n(assistant: There.)\nQ> {DOG}\nA> ",
        f"USER: <image>\n{CUP} ASSISTANT: There. USER: {DOG} ASSISTANT:",
    ],
    ids=["the server's", "the model's"],
)
def test_prompt_that_arrives_rendered_is_read_by_the_servers_template_or_the_models(
    trusting: TracedServer,
    checkpoint: Checkpoint,
    ids: Callable[[str | None], Any],
    prompt: str,
) -> None:
    body = {
        "token_ids": AutoTokenizer.from_pretrained(checkpoint.llava).encode(prompt),
        "content_parts": [{"type": "image_url", "url": RED}],
        "sampling_params": {"max_tokens": 1},
    }

    def generate() -> None:
        url = f"{trusting.url}/inference/v1/generate"
        httpx.post(url, json=body, timeout=120).raise_for_status()

    ask(trusting.url, user_turn(CUP, RED), OPTIONS, 1, chat_template=EXCHANGED)
    [line] = guiding(trusting, generate)
    assert line["text_ids"] == ids(DOG)


def conversation() -> list[dict[str, Any]]:
    return [
        says("system", "Be brief."),
        user_turn(CUP, RED),
        says("assistant", "There."),
        says("user", [text(DOG)]),
        says("user", [image(BLUE)]),
    ]


def test_endpoint_for_responses_is_guided_alike(
    server: TracedServer, ids: Callable[[str | None], Any]
) -> None:
    def converted(content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [
            {"type": "input_text", "text": part["text"]}
            if part["type"] == "text"
            else {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}
            for part in content
        ]

    body = {
        "input": [{**one, "content": converted(one["content"])} for one in conversation()],
        "instructions": "Be kind.",
        "max_output_tokens": 16,
        "mm_processor_kwargs": {"litelvlm": OPTIONS},
    }
    lines = guiding(server, lambda: post(server, "responses", body))
    assert [line["text_ids"] for line in lines] == [ids(DOG)] * 2


def test_endpoint_for_messages_is_guided_alike(
    server: TracedServer, ids: Callable[[str | None], Any]
) -> None:
    def source(url: str) -> dict[str, Any]:
        data = url.partition(",")[2]
        source = {"type": "base64", "media_type": "image/png", "data": data}
        return {"type": "image", "source": source}

    result = {"type": "tool_result", "tool_use_id": "1", "content": [text("Here."), source(BLUE)]}
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    body = {
        "system": "Be brief.",
        "max_tokens": 1,
        "messages": [
            says("user", [source(RED), text(CUP)]),
            says("assistant", "There."),
            says("user", DOG),
            says("assistant", [use]),
            says("user", [result]),
        ],
    }
    lines = guiding(server, lambda: post(server, "messages", body))
    assert [line["text_ids"] for line in lines] == [ids(DOG)] * 2


def test_conversations_of_a_batch_are_guided_each_by_its_own(
    server: TracedServer, ids: Callable[[str | None], Any]
) -> None:
    talks = [
        [user_turn(CUP, RED)],
        [user_turn(DOG, GREEN), says("assistant", "No")],
        conversation(),
    ]
    body = {"messages": talks, "max_tokens": 1, "mm_processor_kwargs": {"litelvlm": OPTIONS}}
    lines = guiding(server, lambda: post(server, "chat/completions/batch", body))
    guided = sorted(line["text_ids"] for line in lines)
    assert guided == sorted([ids(CUP), ids(DOG), ids(DOG), ids(DOG)])


def test_client_cannot_pretend_another_conversation(
    server: TracedServer, trusting: TracedServer, ids: Callable[[str | None], Any]
) -> None:
    body = request(user_turn(CUP, RED), OPTIONS, 1)
    pretended = {"litelvlm": OPTIONS, "litelvlm_conversation": [says("user", DOG)]}
    extra = body.pop("extra_body")
    body = {**body, **extra, "mm_processor_kwargs": pretended}
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        post(server, "chat/completions", body)
    [line] = guiding(trusting, lambda: post(trusting, "chat/completions", body))
    assert line["text_ids"] == ids(CUP)
