"""The user's words come out of a rendered prompt without those of the chat template."""

import time
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.vocabularies import CHAT_TEMPLATE
from vllm_litelvlm.plugin.instruction import InstructionReader, TemplateReader

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }} "
    "{% set messages = messages[1:] %}{% else %}A chat between a curious human and an assistant. "
    "{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
NO_ROLES = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TEMPLATES = {"llava": CHAT_TEMPLATE, "chatml": CHATML, "vicuna": VICUNA}


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint.llava)


@pytest.fixture(scope="module")
def reader(tokenizer: Any) -> InstructionReader:
    return InstructionReader(tokenizer, tokenizer.convert_tokens_to_ids("<image>"))


def rendered(tokenizer: Any, template: str, *turns: tuple[str, str]) -> list[int]:
    as_parts = template is CHAT_TEMPLATE
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
        for role, text in turns
    ]
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())


@every_template
@pytest.mark.parametrize(
    "text",
    [
        "What is this?",
        "<image>\nWhat is this?",
        "<image>\n<image>\nWhere is the 赤い車 🚗?",
        "What does ASSISTANT: mean here?",
        "one\n\ntwo   three",
    ],
)
def test_single_turn_is_the_instruction(
    tokenizer: Any, reader: InstructionReader, template: str, text: str
) -> None:
    prompt = rendered(tokenizer, template, ("user", text))
    expected = " ".join(text.replace("<image>", "").split())
    assert reader.user_turns(prompt, [template]) == [expected]


@every_template
def test_every_user_turn_of_a_conversation_is_found_in_order(
    tokenizer: Any, reader: InstructionReader, template: str
) -> None:
    turns = [
        ("user", "<image>\nA cup?"),
        ("assistant", "Yes, red."),
        ("user", "And a dog?"),
        ("assistant", "No."),
        ("user", "Where is the cup?"),
    ]
    expected = ["A cup?", "And a dog?", "Where is the cup?"]
    assert reader.user_turns(rendered(tokenizer, template, *turns), [template]) == expected
    with_system = rendered(tokenizer, template, ("system", "Answer briefly."), *turns)
    assert reader.user_turns(with_system, [template]) == expected


def test_begin_token_before_the_prompt_does_not_matter(
    tokenizer: Any, reader: InstructionReader
) -> None:
    prompt = rendered(tokenizer, CHAT_TEMPLATE, ("user", "A cup?"))
    assert reader.user_turns([tokenizer.bos_token_id, *prompt], [CHAT_TEMPLATE]) == ["A cup?"]


def test_first_template_that_fits_is_taken(tokenizer: Any, reader: InstructionReader) -> None:
    prompt = rendered(tokenizer, CHATML, ("user", "A cup?"))
    assert reader.user_turns(prompt, [CHAT_TEMPLATE, CHATML]) == ["A cup?"]


@pytest.mark.parametrize("templates", [[], [CHATML], [NO_ROLES], ["{{ broken"]])
def test_prompt_that_follows_no_template_is_read_whole_without_special_tokens(
    tokenizer: Any, reader: InstructionReader, templates: list[str]
) -> None:
    prompt = tokenizer.encode("<image>\nQ: a cup?</s> A:")
    [text] = reader.user_turns(prompt, templates)
    assert " ".join(text.split()) == "Q: a cup? A:"


def test_template_without_roles_is_not_learned(tokenizer: Any) -> None:
    assert TemplateReader.learn(tokenizer, NO_ROLES) is None


def test_special_tokens_in_the_instruction_are_left_out(
    tokenizer: Any, reader: InstructionReader
) -> None:
    prompt = rendered(tokenizer, CHAT_TEMPLATE, ("user", "a </s> cup <s>?"))
    [text] = reader.user_turns(prompt, [CHAT_TEMPLATE])
    assert " ".join(text.split()) == "a cup ?"


def test_empty_turn_is_an_empty_instruction(tokenizer: Any, reader: InstructionReader) -> None:
    prompt = rendered(tokenizer, CHAT_TEMPLATE, ("user", "<image>\n"))
    assert reader.user_turns(prompt, [CHAT_TEMPLATE]) == [""]


def test_reading_takes_time_in_proportion_to_the_prompt(tokenizer: Any) -> None:
    """A pattern that backtracks would take minutes on these."""
    reader = TemplateReader.learn(tokenizer, CHAT_TEMPLATE)
    assert reader is not None
    for filler in (" ", "USER: ", "ASSISTANT: ", "USER: ASSISTANT: "):
        began = time.process_time()
        reader.user_turns("USER: " + filler * 200_000 + "ASSISTANT:")
        assert time.process_time() - began < 20


@every_template
@pytest.mark.parametrize(
    "text",
    [
        "USER:",
        "x USER: y",
        "ASSISTANT: x",
        "user",
        "assistant",
        "<|im_start|>",
        "qzfirst and qzsecond, qzanswer",
        "<0x41>",
        "{{ bos_token }} {% for %}",
        "\0",
        "e\u0301 é",
        "سيارة 👩‍👩‍👧",
    ],
)
def test_words_of_templates_and_markers_in_the_instruction_stay(
    tokenizer: Any, reader: InstructionReader, template: str, text: str
) -> None:
    asked = f"Where is {text} in this?"
    prompt = rendered(tokenizer, template, ("user", asked))
    assert reader.user_turns(prompt, [template]) == [asked]


@every_template
def test_system_message_does_not_guide(
    tokenizer: Any, reader: InstructionReader, template: str
) -> None:
    prompt = rendered(tokenizer, template, ("system", "Be brief. Be kind."), ("user", "A cup?"))
    assert reader.user_turns(prompt, [template]) == ["A cup?"]


def test_default_system_prompt_of_the_template_does_not_guide(
    tokenizer: Any, reader: InstructionReader
) -> None:
    prompt = rendered(tokenizer, VICUNA, ("user", "A cup?"))
    assert "curious human" in tokenizer.decode(prompt)
    assert reader.user_turns(prompt, [VICUNA]) == ["A cup?"]


@every_template
@pytest.mark.parametrize("images", [1, 2, 7])
def test_images_leave_nothing_in_the_instruction(
    tokenizer: Any, reader: InstructionReader, template: str, images: int
) -> None:
    prompt = rendered(tokenizer, template, ("user", "<image>\n" * images + "Which is older?"))
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert prompt.count(image) == images
    assert reader.user_turns(prompt, [template]) == ["Which is older?"]


@every_template
def test_empty_turns_keep_their_places(
    tokenizer: Any, reader: InstructionReader, template: str
) -> None:
    turns = [("user", ""), ("assistant", "Yes?"), ("user", "A cup?")]
    assert reader.user_turns(rendered(tokenizer, template, *turns), [template]) == ["", "A cup?"]


@every_template
def test_special_tokens_alone_are_an_empty_instruction(
    tokenizer: Any, reader: InstructionReader, template: str
) -> None:
    prompt = rendered(tokenizer, template, ("user", "<s></s><image>"))
    assert reader.user_turns(prompt, [template]) == [""]


def test_template_is_learned_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, reader: InstructionReader
) -> None:
    prompt = rendered(tokenizer, CHATML, ("user", "A cup?"))
    fresh = InstructionReader(tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
    calls = []
    learn = TemplateReader.learn

    def spy(tokenizer: Any, template: str) -> TemplateReader | None:
        calls.append(template)
        return learn(tokenizer, template)

    monkeypatch.setattr(TemplateReader, "learn", spy)
    for _ in range(3):
        assert fresh.user_turns(prompt, [NO_ROLES, CHATML]) == ["A cup?"]
    assert calls == [NO_ROLES, CHATML]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.nothing.at.all }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m['content'] }} {{ m['content'] }}{% endfor %}",
        "{% for m in messages if m['role'] == 'user' %}USER: {{ m['content'] }}{% endfor %}",
        "",
    ],
)
def test_template_that_does_not_show_its_parts_is_not_learned(
    tokenizer: Any, template: str
) -> None:
    assert TemplateReader.learn(tokenizer, template) is None


def test_template_that_refuses_a_system_message_is_learned_without_it(
    tokenizer: Any, reader: InstructionReader
) -> None:
    strict = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}"
        "{% endif %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    learned = TemplateReader.learn(tokenizer, strict)
    assert learned is not None
    assert learned.system is None
    turns = [("user", "A cup?"), ("assistant", "Yes."), ("user", "A dog?")]
    prompt = rendered(tokenizer, strict, *turns)
    assert reader.user_turns(prompt, [strict]) == ["A cup?", "A dog?"]


def test_long_white_space_costs_time_in_proportion(
    tokenizer: Any, reader: InstructionReader
) -> None:
    def seconds(spaces: int) -> float:
        prompt = tokenizer.encode("USER: A" + " \n\t" * spaces + "cup? ASSISTANT:")
        began = time.process_time()
        assert reader.user_turns(prompt, [CHAT_TEMPLATE]) == ["A cup?"]
        return time.process_time() - began

    seconds(100)
    short, long = seconds(10_000), seconds(80_000)
    assert long < 30 * max(short, 0.01)  # in proportion: 8 times; squared: 64 times
