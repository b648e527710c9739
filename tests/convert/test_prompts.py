"""Texts and conversations get the ids that GLaMM gives them."""

import random
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import sentencepiece
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer
from vllm.renderers.hf import _detect_content_format

from tests.convert.builder import ADDED, PIXELS, train_sentencepiece
from tests.convert.conftest import Converted
from vllm_litelvlm.convert.vocabulary import read_vocabulary
from vllm_litelvlm.errors import CompatibilityError

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
IMAGE = "The <im_start><image><im_end> provides an overview of the picture.\n"
MARKS = ("<s>", "</s>", "<unk>")


class Slow:
    """GLaMM's rules, one by one, over SentencePiece itself."""

    def __init__(self, folder: Path, added: Mapping[str, int], image_id: int) -> None:
        self.model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        self.added = dict(added)
        self.image_id = image_id

    def __call__(self, prompt: str) -> list[int]:
        """Split at <image>; the start mark of the first chunk stays, of the others it goes."""
        chunks = [self.chunk(chunk) for chunk in prompt.split("<image>")]
        ids = chunks[0]
        for chunk in chunks[1:]:
            ids = [*ids, self.image_id, *chunk[1:]]
        return ids

    def chunk(self, text: str) -> list[int]:
        every = [*self.added, *MARKS]
        parts = re.split("(" + "|".join(map(re.escape, every)) + ")", text)
        for at in range(1, len(parts), 2):
            if parts[at] in self.added:
                parts[at - 1] = parts[at - 1].rstrip()
                parts[at + 1] = parts[at + 1].lstrip()
        ids = [self.model.bos_id()]
        for part in parts:
            if part in self.added:
                ids.append(self.added[part])
            elif part in MARKS:
                ids.append(self.model.piece_to_id(part))
            elif part:
                ids += self.model.encode(part)
        return ids


@pytest.fixture(scope="module")
def slow(converted: Converted) -> Slow:
    pieces = converted.source.pieces
    added = {token: pieces + place for place, token in enumerate(ADDED)}
    return Slow(converted.glamm, added, pieces + len(ADDED))


Messages = list[dict[str, object]]


def rounds(*said: tuple[str, str]) -> tuple[str, Messages]:
    """GLaMM's text of a conversation whose last answer may be missing, and its messages."""
    text, messages = f"{SYSTEM} ", []
    for number, (question, answer) in enumerate(said):
        text += f"USER: {IMAGE if number == 0 else ''}{question} ASSISTANT:"
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        if number == 0:
            content.insert(0, {"type": "image"})
        messages.append({"role": "user", "content": content})
        if answer:
            text += f" {answer}</s>"
            messages.append({"role": "assistant", "content": answer})
    return text, messages


QUESTION = "Can you please segment the man on the left in this image?"
CONVERSATIONS = [
    rounds((QUESTION, "")),
    rounds((QUESTION, "Sure, it is [SEG].")),
    rounds((QUESTION, "Sure, [SEG] ."), ("And  the dog's  bowl ?", "It is [SEG]."), ("Why?", "")),
    rounds(("What is <bbox> ?", "<p> A man </p> [SEG] and <p>a dog</p>[SEG]."), ("東京?", "")),
]


@pytest.mark.parametrize(("text", "messages"), CONVERSATIONS)
def test_conversation_has_glamms_ids(
    converted: Converted, slow: Slow, text: str, messages: Messages
) -> None:
    processor = AutoProcessor.from_pretrained(converted.output)
    asks = messages[-1]["role"] == "user"
    rendered = processor.apply_chat_template(messages, add_generation_prompt=asks)
    assert rendered == f"<s>{text}"
    expected = slow(text)
    assert expected.count(slow.image_id) == 1
    assert processor.tokenizer(text).input_ids == expected
    # The template begins with the start mark: no other comes before it.
    picture = Image.new("RGB", (80, 60))
    given = processor(images=picture, text=rendered, add_special_tokens=False, return_tensors="pt")
    at = expected.index(slow.image_id)
    long = expected[:at] + 16 * [slow.image_id] + expected[at + 1 :]
    assert given["input_ids"][0].tolist() == long
    assert given["pixel_values"].shape == (1, 3, PIXELS, PIXELS)


def test_any_text_has_glamms_ids(converted: Converted, slow: Slow) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted.output)
    chance = random.Random(0)
    pieces = [slow.model.id_to_piece(number) for number in range(259, slow.model.vocab_size())]
    words = [piece.replace("▁", " ") for piece in pieces]
    tokens = [*ADDED, "<image>", "</s>", " ", "  ", "\n", "é", "漢", "🙂", "7"]
    for _ in range(3000):
        length = chance.randint(0, 12)
        text = "".join(chance.choice(chance.choice([words, tokens])) for _ in range(length))
        assert tokenizer(text).input_ids == slow(text), repr(text)


def test_answer_shows_its_masks_but_no_marks(converted: Converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted.output)
    ids = tokenizer("It is [SEG] and <p>a dog</p>.</s>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "It is[SEG] and<p> a dog</p> ."
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 0
    assert tokenizer.model_max_length == 1536


def test_template_is_one_that_vllm_gives_parts_to(converted: Converted) -> None:
    template = AutoProcessor.from_pretrained(converted.output).chat_template
    assert _detect_content_format(template, default="string") == "openai"


def test_answer_loses_the_space_that_a_server_leaves(converted: Converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted.output)
    said = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": " Sure."}]
    said.insert(0, {"role": "system", "content": "Be brief."})
    rendered = tokenizer.apply_chat_template(said, tokenize=False)
    assert rendered == "<s>Be brief. USER: So? ASSISTANT: Sure.</s>"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("unigram", {}), ("bpe", {"normalization_rule_name": "nmt_nfkc"})],
)
def test_tokenizer_that_is_not_llamas_is_refused(
    converted: Converted, tmp_path: Path, kind: str, settings: dict[str, object]
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(kind, **settings))
    added = (converted.glamm / "added_tokens.json").read_text()
    (tmp_path / "added_tokens.json").write_text(added)
    with pytest.raises(CompatibilityError, match=r"is not like Llama's .* from token \d+ of"):
        read_vocabulary(tmp_path)
