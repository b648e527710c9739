"""The user's words come out of a rendered prompt without those of the chat template."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.plugin.test_turns import token_behind
from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.demo.vocabularies import CHAT_TEMPLATE
from vllm_litelvlm.plugin.instruction import InstructionReader, TemplateReader
from vllm_litelvlm.plugin.turns import Turn

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


def reader(tokenizer: Any, *templates: str) -> InstructionReader:
    return InstructionReader(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), templates)


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
def test_single_turn_is_the_instruction(tokenizer: Any, template: str, text: str) -> None:
    prompt = rendered(tokenizer, template, ("user", text))
    expected = " ".join(text.replace("<image>", "").split())
    assert reader(tokenizer, template).texts(prompt) == [expected]


@every_template
def test_every_user_turn_of_a_conversation_is_found_in_order(tokenizer: Any, template: str) -> None:
    turns = [
        ("user", "<image>\nA cup?"),
        ("assistant", "Yes, red."),
        ("user", "And a dog?"),
        ("assistant", "No."),
        ("user", "Where is the cup?"),
    ]
    expected = ["A cup?", "And a dog?", "Where is the cup?"]
    assert reader(tokenizer, template).texts(rendered(tokenizer, template, *turns)) == expected
    with_system = rendered(tokenizer, template, ("system", "Answer briefly."), *turns)
    assert reader(tokenizer, template).texts(with_system) == expected


def test_begin_token_before_the_prompt_does_not_matter(tokenizer: Any) -> None:
    prompt = rendered(tokenizer, CHAT_TEMPLATE, ("user", "A cup?"))
    assert reader(tokenizer, CHAT_TEMPLATE).texts([tokenizer.bos_token_id, *prompt]) == ["A cup?"]


def test_first_template_that_fits_is_taken(tokenizer: Any) -> None:
    prompt = rendered(tokenizer, CHATML, ("user", "A cup?"))
    assert reader(tokenizer, CHAT_TEMPLATE, CHATML).texts(prompt) == ["A cup?"]


@pytest.mark.parametrize("templates", [[], [CHATML], [NO_ROLES], ["{{ broken"]])
def test_prompt_that_follows_no_template_is_read_whole_without_special_tokens(
    tokenizer: Any, templates: list[str]
) -> None:
    prompt = tokenizer.encode("<image>\nQ: a cup?</s> A:")
    [text] = reader(tokenizer, *templates).texts(prompt)
    assert " ".join(text.split()) == "Q: a cup? A:"


def test_template_without_roles_is_not_learned(tokenizer: Any) -> None:
    assert TemplateReader.learn(tokenizer, NO_ROLES) is None


def test_special_tokens_in_the_instruction_are_left_out(tokenizer: Any) -> None:
    prompt = rendered(tokenizer, CHAT_TEMPLATE, ("user", "a </s> cup <s>?"))
    [text] = reader(tokenizer, CHAT_TEMPLATE).texts(prompt)
    assert " ".join(text.split()) == "a cup ?"


def test_empty_turn_says_nothing(tokenizer: Any) -> None:
    prompt = rendered(tokenizer, CHAT_TEMPLATE, ("user", "<image>\n"))
    assert reader(tokenizer, CHAT_TEMPLATE).texts(prompt) == []


def test_reading_takes_time_in_proportion_to_the_prompt(tokenizer: Any) -> None:
    """A pattern that backtracks would take minutes on these."""
    reader = TemplateReader.learn(tokenizer, CHAT_TEMPLATE)
    assert reader is not None
    for filler in (" ", "USER: ", "ASSISTANT: ", "USER: ASSISTANT: "):
        began = time.process_time()
        assert reader.user_turns("USER: " + filler * 200_000 + "ASSISTANT:")
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
    tokenizer: Any, template: str, text: str
) -> None:
    asked = f"Where is {text} in this?"
    prompt = rendered(tokenizer, template, ("user", asked))
    assert reader(tokenizer, template).texts(prompt) == [asked]


@every_template
def test_system_message_does_not_guide(tokenizer: Any, template: str) -> None:
    prompt = rendered(tokenizer, template, ("system", "Be brief. Be kind."), ("user", "A cup?"))
    assert reader(tokenizer, template).texts(prompt) == ["A cup?"]


def test_default_system_prompt_of_the_template_does_not_guide(tokenizer: Any) -> None:
    prompt = rendered(tokenizer, VICUNA, ("user", "A cup?"))
    assert "curious human" in tokenizer.decode(prompt)
    assert reader(tokenizer, VICUNA).texts(prompt) == ["A cup?"]


@every_template
@pytest.mark.parametrize("images", [1, 2, 7])
def test_images_leave_nothing_in_the_instruction(
    tokenizer: Any, template: str, images: int
) -> None:
    prompt = rendered(tokenizer, template, ("user", "<image>\n" * images + "Which is older?"))
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert prompt.count(image) == images
    assert reader(tokenizer, template).texts(prompt) == ["Which is older?"]


@every_template
def test_empty_turn_beside_another_says_nothing(tokenizer: Any, template: str) -> None:
    turns = [("user", ""), ("assistant", "Yes?"), ("user", "A cup?")]
    prompt = rendered(tokenizer, template, *turns)
    assert reader(tokenizer, template).texts(prompt) == ["A cup?"]
    assert [turn.text for turn in reader(tokenizer, template).turns(prompt)] == ["A cup?"]


@every_template
def test_special_tokens_alone_say_nothing(tokenizer: Any, template: str) -> None:
    prompt = rendered(tokenizer, template, ("user", "<s></s><image>"))
    assert reader(tokenizer, template).texts(prompt) == []


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


def test_template_that_refuses_a_system_message_is_learned_without_it(tokenizer: Any) -> None:
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
    assert reader(tokenizer, strict).texts(prompt) == ["A cup?", "A dog?"]


def test_long_white_space_costs_time_in_proportion(tokenizer: Any) -> None:
    def seconds(spaces: int) -> float:
        prompt = tokenizer.encode("USER: A" + " \n\t" * spaces + "cup? ASSISTANT:")
        began = time.process_time()
        assert reader(tokenizer, CHAT_TEMPLATE).texts(prompt) == ["A cup?"]
        return time.process_time() - began

    seconds(100)
    short, long = seconds(10_000), seconds(80_000)
    assert long < 30 * max(short, 0.01)  # in proportion: 8 times; squared: 64 times


def behind(tokenizer: Any, prompt: Sequence[int], image: int) -> int:
    """The place behind an image, by its number."""
    token = tokenizer.convert_tokens_to_ids("<image>")
    return [place for place, one in enumerate(prompt) if one == token][image] + 1


@every_template
@pytest.mark.parametrize("begin", [True, False])
def test_turn_stands_behind_its_images_or_where_its_words_begin(
    tokenizer: Any, template: str, begin: bool
) -> None:
    said = [
        ("user", "<image>\n<image>\nA 赤い cup?"),
        ("assistant", "Yes, 🚗 red."),
        ("user", "And a dog?"),
        ("assistant", "No."),
        ("user", "<image>\n"),
        ("assistant", "A cat."),
        ("user", "Where is the cup?"),
    ]
    for length in (1, 3, 5, 7):
        prompt = [tokenizer.bos_token_id] * begin + rendered(tokenizer, template, *said[:length])
        text = tokenizer.decode(prompt).removeprefix("<s>").strip()

        def words(asked: str, prompt: list[int] = prompt, text: str = text) -> Turn:
            return Turn(asked, token_behind(tokenizer, prompt, text.partition(asked)[0]))

        expected = [Turn("A 赤い cup?", behind(tokenizer, prompt, 1))]
        expected += [words("And a dog?")] if length > 1 else []
        expected += [Turn("", behind(tokenizer, prompt, 2))] if length > 3 else []
        expected += [words("Where is the cup?")] if length > 5 else []
        assert reader(tokenizer, template).turns(prompt) == expected


@every_template
@pytest.mark.parametrize(
    "text", ["What is <image> this?", "What is this? <image>", "a <image> b <image>\n c"]
)
def test_image_anywhere_in_a_turn_is_the_turns(tokenizer: Any, template: str, text: str) -> None:
    prompt = rendered(tokenizer, template, ("user", text), ("assistant", "Yes."), ("user", "So?"))
    [first, second] = reader(tokenizer, template).turns(prompt)
    assert first.place == behind(tokenizer, prompt, -1)
    assert (second.text, second.place > first.place) == ("So?", True)


def test_image_outside_of_all_turns_is_a_turn_without_words(tokenizer: Any) -> None:
    prompt = rendered(
        tokenizer,
        CHATML,
        ("system", "See <image> here."),
        ("user", "A cup?"),
        ("assistant", "As in <image>"),
        ("user", "A dog? <image>"),
    )
    turns = reader(tokenizer, CHATML).turns(prompt)
    assert [turn.text for turn in turns] == ["", "A cup?", "", "A dog?"]
    for turn, image in ((turns[0], 0), (turns[2], 1), (turns[3], 2)):
        assert turn.place == behind(tokenizer, prompt, image)


@pytest.mark.parametrize("text", ["<image> Q: a cup? <image>\n A:", "Q: <image> a cup? A:"])
def test_prompt_that_follows_no_template_is_one_turn_behind_its_last_image(
    tokenizer: Any, text: str
) -> None:
    prompt = tokenizer.encode(text)
    [turn] = reader(tokenizer, CHATML).turns(prompt)
    assert turn == Turn("Q: a cup? A:", behind(tokenizer, prompt, -1))
    assert reader(tokenizer, CHATML).turns(tokenizer.encode("")) == []


def test_template_that_labels_no_user_keeps_its_own_words_out(tokenizer: Any) -> None:
    template = (
        "Look at this. {% for m in messages %}{{ m['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}The answer:{% endif %}"
    )
    prompt = rendered(tokenizer, template, ("user", "<image>\nA cup?"))
    assert reader(tokenizer, template).texts(prompt) == ["A cup?"]
    assert reader(tokenizer, template).turns(prompt) == [
        Turn("A cup?", behind(tokenizer, prompt, 0))
    ]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ({"user": "", "assistant": "The answer: "}, ["A cup?", "Yes. A dog?"]),
        ({"user": "The question: ", "assistant": ""}, ["A cup? Yes.", "A dog?"]),
        ({"user": "", "assistant": ""}, ["A cup? Yes. A dog?"]),
    ],
)
def test_template_that_labels_one_speaker_keeps_the_label_out(
    tokenizer: Any, label: dict[str, str], said: list[str]
) -> None:
    template = (
        "Look at this. {% for m in messages %}{{ "
        f"{label}[m['role']]"
        " }}{{ m['content'] }}\n{% endfor %}"
    )
    turns = [("user", "<image>\nA cup?"), ("assistant", "Yes."), ("user", "A dog?")]
    prompt = rendered(tokenizer, template, *turns)
    one = reader(tokenizer, template)
    assert one.texts(prompt) == [turn.text for turn in one.turns(prompt)] == said


def test_texts_of_the_turns_are_the_texts(tokenizer: Any) -> None:
    for template in TEMPLATES.values():
        prompt = rendered(
            tokenizer, template, ("user", "a"), ("assistant", "b"), ("user", "<image> 赤 c")
        )
        one = reader(tokenizer, template)
        assert [turn.text for turn in one.turns(prompt)] == one.texts(prompt) == ["a", "赤 c"]
