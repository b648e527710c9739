"""Guiding texts become what CLIP reads of them."""

import logging
import random
from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer
from transformers import AutoTokenizer, CLIPTokenizer

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.vision.text import ClipTextTokenizer


@pytest.fixture(autouse=True)
def plain_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's log as it is without vLLM, whatever ran before: each record is seen once."""
    logger = logging.getLogger("vllm_litelvlm")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)


@pytest.fixture
def tokenizer(checkpoint: Checkpoint) -> ClipTextTokenizer:
    return ClipTextTokenizer(str(checkpoint.clip), 77)


def test_token_ids_are_those_of_clips_own_tokenizer(
    tokenizer: ClipTextTokenizer, checkpoint: Checkpoint
) -> None:
    texts = ["A red cup.", "赤い車 🚗", "the woman on the left, in a white dress", "\u200b"]
    theirs = AutoTokenizer.from_pretrained(checkpoint.clip)
    ids = tokenizer(texts)
    for row, text in zip(ids.tolist(), texts, strict=True):
        expected = theirs(text)["input_ids"]
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {expected[-1]}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimpleTokenizer, Path]:
    """OpenAI's tokenizer as open_clip keeps it, and a folder with its vocabulary for ours."""
    theirs = SimpleTokenizer()
    *vocabulary, _start, _end = sorted(theirs.encoder, key=theirs.encoder.__getitem__)
    tokens = [*vocabulary, "<|startoftext|>", "<|endoftext|>"]
    merges = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.__getitem__)
    folder = tmp_path_factory.mktemp("published")
    vocab = {token: number for number, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocab, merges=merges).save_pretrained(folder)
    return theirs, folder


#: What people, their keyboards and the programs between them make of a description.
WORDS = [
    "the player\u2019s shirt",
    "a \u201cred\u201d cup",
    "it's n\u2019t we\u2019ll",
    "\ufb01sh \ufb02ag \ufb03",
    "salt &amp; pepper",
    "&lt;b&gt;left&lt;/b&gt;",
    "&amp;quot;big&amp;quot;",
    "caf\u00e9",
    "cafe\u0301",
    "schÃ¶n",
    "doesnâ€™t",
    "\uff21\uff22\uff23 \uff11\uff12",
    "赤い車",
    "красная чашка",
    "κόκκινο ΠΟΤΗΡΙ ΟΔΟΣ",
    "İstanbul",
    "straße STRASSE",
    "किताब",
    "كوب أحمر",
    "🚗🏽",
    "👩\u200d🚀",
    "①②",
    "x²",
    "½ cup",
    "3.14%",
    "No.7",
    "U.S.A.",
    "e-mail@x.org",
    "http://a.b/c?d=e",
    "snake_case",
    "C++",
    "#1",
    "$5",
    "...",
    "?!",
    "a\u00a0b",
    "a\u2003b",
    "a\tb\r\nc",
    "soft\u00adhyphen",
    "zero\u200bwidth",
    "—",
    "–",
    "…",
    "№",
    "™",
    "LEFT",
    "man in hat",
    "2nd from right",
    "zebra",
    "the 100th",
    "don't",
    "O'Neill's",
    "rock 'n' roll",
]


def test_token_ids_are_those_that_clip_was_trained_with(
    published: tuple[SimpleTokenizer, Path],
) -> None:
    theirs, folder = published
    ours = ClipTextTokenizer(str(folder), 1_000)
    draw = random.Random(0)
    texts = [
        draw.choice(["", " ", "\n"])
        + draw.choice(["", " ", ", ", "  "]).join(draw.sample(WORDS, n))
        for n in (draw.randint(1, 5) for _ in range(1_000))
    ]
    for text in [*WORDS, *texts]:
        expected = [theirs.sot_token_id, *theirs.encode(text), theirs.eot_token_id]
        assert ours([text])[0].tolist() == expected, text


def test_long_text_keeps_its_end_token_and_is_told_once(
    tokenizer: ClipTextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    long, other = "a red cup and " * 50, "a blue cup and " * 50
    with caplog.at_level(logging.WARNING, logger="vllm_litelvlm.vision.text"):
        short_ids = tokenizer(["a red cup"])
        assert not caplog.records
        ids = tokenizer([long])
        tokenizer([long, "short"])
        assert len(caplog.records) == 1
        tokenizer([other])
    assert len(caplog.records) == 2
    assert "longer than the 77 tokens" in caplog.text
    assert ids.shape == (1, 77)
    assert ids[0, -1] == short_ids[0, -1]


def test_folder_without_a_tokenizer_is_refused(tmp_path: object) -> None:
    with pytest.raises(WeightsError, match="No CLIP tokenizer at"):
        ClipTextTokenizer(str(tmp_path), 77)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "A RED CUP",
        "赤い車",
        "красная машина",
        "سيارة حمراء",
        "लाल कार",
        "빨간 차",
        "e\u0301",
        "👩‍👩‍👧 🚗",
        "\ufffd",
        "\u200b",
        "  two \n words ",
        "!?...",
    ],
)
def test_text_in_any_script_keeps_its_content_between_start_and_end(
    tokenizer: ClipTextTokenizer, text: str
) -> None:
    [row] = tokenizer([text]).tolist()
    start, end = tokenizer(["a"])[0, [0, -1]].tolist()
    assert (row[0], row[-1]) == (start, end)
    assert len(row) > 2
    assert end not in row[:-1]


def test_control_characters_are_nothing_as_for_clips_own_tokenizer(
    tokenizer: ClipTextTokenizer,
) -> None:
    assert tokenizer(["\0"]).shape == (1, 2)
    assert tokenizer(["a red\0 cup"]).tolist() == tokenizer(["a red cup"]).tolist()


def test_case_and_white_space_make_no_difference(tokenizer: ClipTextTokenizer) -> None:
    plain = tokenizer(["a red cup"]).tolist()
    assert tokenizer(["A  Red\n\tCUP "]).tolist() == plain
    assert tokenizer(["a red cap"]).tolist() != plain


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_empty_text_is_start_and_end(tokenizer: ClipTextTokenizer, text: str) -> None:
    ids = tokenizer([text, "a"])
    assert ids.shape == (2, 3)
    assert ids[0, 1] == ids[0, 2] == ids[1, 2]


@pytest.mark.parametrize(("words", "truncated"), [(75, False), (76, True), (5000, True)])
def test_truncation_begins_above_77_tokens_and_keeps_the_beginning(
    tokenizer: ClipTextTokenizer, caplog: pytest.LogCaptureFixture, words: int, truncated: bool
) -> None:
    start, word, end = tokenizer(["a"])[0].tolist()
    with caplog.at_level(logging.WARNING, logger="vllm_litelvlm.vision.text"):
        [row] = tokenizer([" ".join("a" * words)]).tolist()
    assert row == [start, *[word] * 75, end]
    assert len(caplog.records) == int(truncated)


def test_warning_shows_the_beginning_of_the_text_on_one_line(
    tokenizer: ClipTextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    text = "first line\nsecond line " + "and more " * 100
    with caplog.at_level(logging.WARNING, logger="vllm_litelvlm.vision.text"):
        tokenizer([text])
    [record] = caplog.records
    message = record.getMessage()
    assert f"of {len(text)} characters" in message
    assert r"'first line\nsecond line" in message
    assert "\n" not in message
    assert len(message) < 250


def test_every_row_is_padded_with_its_end_token(tokenizer: ClipTextTokenizer) -> None:
    ids = tokenizer(["a", "a a a", "a a"])
    assert str(ids.dtype) == "torch.int32"
    assert ids.shape == (3, 5)
    end = ids[1, -1]
    assert (ids == end).sum(dim=1).tolist() == [3, 1, 2]


def test_text_that_spells_the_end_token_does_not_end_there(tokenizer: ClipTextTokenizer) -> None:
    spelled, plain = tokenizer(["a <|endoftext|> red cup"]), tokenizer(["a"])
    end = int(plain[0, -1])
    assert spelled[0].tolist().count(end) == 1
    assert spelled[0, -1] == end
