"""Guiding texts become what CLIP reads of them."""

import logging

import pytest
from transformers import AutoTokenizer

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.vision.text import ClipTextTokenizer


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
