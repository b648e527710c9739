"""A chat's own messages say what guides it, and its prompt where."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image
from vllm import EngineArgs
from vllm.renderers import ChatParams
from vllm.renderers.registry import renderer_from_config

from tests.e2e.client import user_turn
from tests.plugin.test_instruction import CHATML, VICUNA
from tests.plugin.test_turns import token_behind
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.vocabularies import CHAT_TEMPLATE
from vllm_litelvlm.plugin import compat
from vllm_litelvlm.plugin.conversation import CONVERSATION_KEY, Conversation
from vllm_litelvlm.plugin.turns import Turn

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
#: Another form altogether: a preamble with the tools, no label, answers in brackets.
FOREIGN = (
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}Q> {{ m['content'] }}\n{% elif m['content'] %}"
    "({{ m['role'] }} {{ m['content'] }})\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A> {% endif %}"
)
TEMPLATES = {"parts": CHAT_TEMPLATE, "chatml": CHATML, "vicuna": VICUNA, "foreign": FOREIGN}
every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())

ONE, TWO = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
CUP, DOG, CAT = "A 赤い cup? 🚗", "And a dog?", "Where is\n\nthe  cat?"


@pytest.fixture(scope="module")
def renderer(installed: None, checkpoint: Checkpoint) -> Any:
    config = EngineArgs(
        model=str(checkpoint.llava),
        dtype="float32",
        max_model_len=4096,
        limit_mm_per_prompt={"image": 4},
        additional_config={"litelvlm": {"clip_model": str(checkpoint.clip)}},
    ).create_engine_config()
    return renderer_from_config(config)


@pytest.fixture
def receive(renderer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Renders a chat, and gives what the multimodal processor received."""
    received = []

    def apply(inputs: Any, timing: Any) -> Any:
        received.append(inputs)
        return {"type": "multimodal", "prompt_token_ids": inputs.prompt}

    monkeypatch.setattr(renderer.mm_processor, "apply", apply)

    def render(
        messages: list[Any],
        template: str = CHAT_TEMPLATE,
        extras: dict[str, Any] | None = None,
        in_turn: bool = True,
        **settings: Any,
    ) -> Any:
        settings = {"add_generation_prompt": True, **settings}
        params = ChatParams(chat_template=template, chat_template_kwargs=settings)
        if in_turn:
            renderer.render_chat([messages], params, prompt_extras=extras)
        else:
            asyncio.run(renderer.render_chat_async([messages], params, prompt_extras=extras))
        return received.pop()

    return render


@pytest.fixture
def tokenizer(renderer: Any) -> Any:
    return renderer.get_tokenizer()


def turns_of(inputs: Any, tokenizer: Any) -> list[Turn] | None:
    conversation = inputs.hf_processor_mm_kwargs[CONVERSATION_KEY]
    assert isinstance(conversation, Conversation)
    image = tokenizer.convert_tokens_to_ids("<image>")
    turns = conversation.turns(inputs.prompt, tokenizer, image)
    if turns is not None:
        assert [turn.text for turn in turns if turn.text] == conversation.texts()
    return turns


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def expected(tokenizer: Any, prompt: Sequence[int], shape: Sequence[str | int]) -> list[Turn]:
    """Turns by name: their text, followed by the number of their last image where they have any."""
    image = tokenizer.convert_tokens_to_ids("<image>")
    images = [place for place, token in enumerate(prompt) if token == image]
    whole = tokenizer.decode(prompt[1:] if prompt[0] == tokenizer.bos_token_id else prompt)
    turns = []
    for text, then in itertools.pairwise([*shape, ""]):
        if isinstance(text, int):
            continue
        if isinstance(then, int):
            place = images[then] + 1
        else:
            place = token_behind(tokenizer, prompt, whole.partition(text)[0])
        turns.append(Turn(text, place))
    return turns


def shapes(one: Image.Image, two: Image.Image) -> dict[str, tuple[list[Any], list[str | int]]]:
    picture = user_turn("", one)
    del picture["content"][1]
    answer = {"role": "tool", "tool_call_id": "1", "content": "The tool saw a bird."}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    return {
        "one turn": ([user_turn(CUP, one)], [CUP, 0]),
        "system": (
            [{"role": "system", "content": "Be brief."}, user_turn(CUP, one)],
            [CUP, 0],
        ),
        "conversation": (
            [
                user_turn(CUP, one),
                assistant("Yes."),
                user_turn(DOG),
                assistant("No."),
                user_turn(CAT),
            ],
            [CUP, 0, DOG, CAT],
        ),
        "prefill": ([user_turn(CUP, one), assistant("The cup is")], [CUP, 0]),
        "two user messages": ([user_turn(CUP, one), user_turn(DOG)], [CUP, 0, DOG]),
        "words before their image": (
            [user_turn(DOG), assistant("?"), user_turn(CUP, one)],
            [DOG, CUP, 0],
        ),
        "image in an earlier turn": (
            [user_turn(CUP, one), assistant("Yes."), {"role": "user", "content": DOG}],
            [CUP, 0, DOG],
        ),
        "image alone": ([picture], ["", 0]),
        "words, then an image alone": ([user_turn(DOG), picture], [DOG, "", 0]),
        "image alone, then words": ([picture, user_turn(DOG)], ["", 0, DOG]),
        "images in several turns": (
            [user_turn(CUP, one, two), assistant("Yes."), user_turn(DOG), user_turn(CAT, two)],
            [CUP, 1, DOG, CAT, 2],
        ),
        "tool": (
            [
                user_turn(CUP, one),
                {"role": "assistant", "content": None, "tool_calls": [call]},
                answer,
                user_turn(DOG),
            ],
            [CUP, 0, DOG],
        ),
        "the same words twice": (
            [user_turn(CUP, one), assistant(DOG + " Yes."), user_turn(CAT)],
            [CUP, 0, CAT],
        ),
        "special tokens": ([user_turn(f"</s>{CUP} <s>", one)], [CUP, 0]),
        "several texts": (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": DOG},
                        user_turn("", two)["content"][0],
                        {"type": "text", "text": "Or two?"},
                    ],
                }
            ],
            [f"{DOG}\nOr two?", 0],
        ),
    }


SHAPES = shapes(ONE, TWO)


@every_template
@pytest.mark.parametrize("name", SHAPES)
def test_turns_are_the_users_words_with_their_places(
    receive: Any, tokenizer: Any, template: str, name: str
) -> None:
    messages, shape = SHAPES[name]
    if name == "prefill":
        inputs = receive(
            messages, template, add_generation_prompt=False, continue_final_message=True
        )
    else:
        inputs = receive(messages, template, tools=TOOLS if name == "tool" else None)
    assert turns_of(inputs, tokenizer) == expected(tokenizer, inputs.prompt, shape)


@every_template
@pytest.mark.parametrize("name", SHAPES)
def test_turns_stay_where_they_are_as_the_conversation_grows(
    receive: Any, tokenizer: Any, template: str, name: str
) -> None:
    messages, _ = SHAPES[name]
    whole = turns_of(receive(messages, template), tokenizer)
    assert whole is not None
    images = 0
    for length in range(1, len(messages)):
        images += "image" in str(messages[length - 1]["content"])
        if images:
            part = turns_of(receive(messages[:length], template), tokenizer)
            assert part is not None
            assert part == whole[: len(part)]


def test_async_rendering_keeps_the_conversation_as_well(receive: Any, tokenizer: Any) -> None:
    messages, shape = SHAPES["conversation"]
    inputs = receive(messages, in_turn=False)
    assert turns_of(inputs, tokenizer) == expected(tokenizer, inputs.prompt, shape)


def test_image_of_a_tool_is_a_turn_without_words(receive: Any, tokenizer: Any) -> None:
    shown = {**user_turn("A bird.", TWO), "role": "tool", "tool_call_id": "1"}
    messages = [user_turn(CUP, ONE), assistant("Look."), shown, user_turn(DOG)]
    inputs = receive(messages, CHATML)
    assert turns_of(inputs, tokenizer) == expected(tokenizer, inputs.prompt, [CUP, 0, "", 1, DOG])


def test_placeholder_that_the_user_typed_is_where_the_image_stands(
    receive: Any, tokenizer: Any
) -> None:
    inputs = receive([user_turn("What is <image> here?", ONE)], CHATML)
    [turn] = turns_of(inputs, tokenizer) or []
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert turn == Turn("What is  here?", inputs.prompt.index(image) + 1)


def test_prompt_that_does_not_show_the_conversation_gives_no_places(
    receive: Any, tokenizer: Any
) -> None:
    messages, _ = SHAPES["conversation"]
    image = tokenizer.convert_tokens_to_ids("<image>")
    inputs = receive(messages)
    conversation = inputs.hf_processor_mm_kwargs[CONVERSATION_KEY]
    without_image = [token for token in inputs.prompt if token != image]
    for prompt in (without_image, inputs.prompt[3:], inputs.prompt[:-20], [image, *inputs.prompt]):
        assert conversation.turns(prompt, tokenizer, image) is None


@pytest.mark.parametrize(
    "reads",
    [
        "{% if m['content'].startswith('And') %}And! {% endif %}{{ m['content'] }}",
        "{{ m['content'] | length }}: {{ m['content'] }}",
        "{{ m['content'] | upper }}",
        "{% if loop.first %}{{ m['content'] }}{% endif %}",
        "{{ m['content'] }} {{ m['content'] if 'image' not in m['content'] }}",
    ],
)
def test_template_that_reads_the_words_gives_no_places_but_the_texts(
    receive: Any, tokenizer: Any, reads: str
) -> None:
    template = "{% for m in messages %}" + reads + "\n{% endfor %}"
    inputs = receive([user_turn(CUP, ONE), user_turn(DOG)], template)
    assert turns_of(inputs, tokenizer) is None
    assert inputs.hf_processor_mm_kwargs[CONVERSATION_KEY].texts() == [CUP, DOG]


def test_nothing_is_rendered_for_texts_or_for_turns_that_all_have_images(tokenizer: Any) -> None:
    def render(*_: Any) -> str:
        raise AssertionError

    parts = [{"type": "image"}, {"type": "text", "text": CUP}]
    talk: list[dict[str, Any]]
    talk = [{"role": "user", "content": parts}, {"role": "user", "content": f"<image>\n{DOG}"}]
    conversation = Conversation(talk, "<image>", tokenizer.all_special_tokens, render)
    assert conversation.texts() == [CUP, DOG]
    assert conversation.turns([5, 9, 6, 9, 7], tokenizer, 9) == [Turn(CUP, 2), Turn(DOG, 4)]
    talk += [{"role": "user", "content": CAT}, {"role": "assistant", "content": None}]
    assert Conversation(talk, "<image>", [], render).texts() == [CUP, DOG, CAT]


def test_client_cannot_send_a_conversation_of_its_own(receive: Any) -> None:
    sent = {CONVERSATION_KEY: "mine", "other": 1}
    kwargs = receive(
        [user_turn(CUP, ONE)], extras={"mm_processor_kwargs": sent}
    ).hf_processor_mm_kwargs
    assert kwargs[CONVERSATION_KEY].texts() == [CUP]
    assert kwargs["other"] == 1
    assert sent == {CONVERSATION_KEY: "mine", "other": 1}


def test_rendered_prompt_brings_no_conversation(
    receive: Any, renderer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Any] = []

    def apply(inputs: Any, timing: Any) -> Any:
        received.append(inputs.hf_processor_mm_kwargs)
        return {"type": "multimodal", "prompt_token_ids": inputs.prompt}

    monkeypatch.setattr(renderer.mm_processor, "apply", apply)
    prompt = {"prompt": "<image> Q", "multi_modal_data": {"image": ONE}}
    renderer.render_cmpl([dict(prompt)])
    renderer.render_cmpl([{**prompt, "mm_processor_kwargs": {CONVERSATION_KEY: "mine", "a": 1}}])
    assert received == [{}, {"a": 1}]


def test_other_models_see_nothing_of_it(receive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "is_ours", lambda renderer: False)
    sent = {CONVERSATION_KEY: "mine"}
    inputs = receive([user_turn(CUP, ONE)], extras={"mm_processor_kwargs": sent})
    assert inputs.hf_processor_mm_kwargs is sent
    assert receive([user_turn(CUP, ONE)]).hf_processor_mm_kwargs == {}


def test_processor_hears_of_the_servers_template_and_of_no_requests(
    receive: Any, renderer: Any
) -> None:
    renderer.warmup(ChatParams(chat_template=CHATML))
    assert renderer.mm_processor.chat_template == CHATML
    receive([user_turn(CUP, ONE)], FOREIGN)
    assert renderer.mm_processor.chat_template == CHATML
