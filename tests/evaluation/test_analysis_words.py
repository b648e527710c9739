"""Which words refer, and how much attention they get."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.analysis.base import AnalysisError, Batch, Settings
from vllm_litelvlm.evaluation.analysis.checkpoint import load_encoder
from vllm_litelvlm.evaluation.analysis.clip_encoder import ClipEncoder
from vllm_litelvlm.evaluation.analysis.sink import GROUPS, Sink, group_tokens, sum_by_group
from vllm_litelvlm.evaluation.analysis.words import (
    NounChunks,
    expression_spans,
    load_noun_chunks,
    own_texts,
)
from vllm_litelvlm.evaluation.samples import Sample


def asked(prompt: str, *texts: str) -> Sample:
    return Sample(prompt, Image.new("RGB", (8, 8)), prompt, texts, "colour")


def spelled(sample: Sample, spans: list[tuple[int, int]]) -> list[str]:
    return [sample.prompt[start:stop] for start, stop in spans]


def test_referring_words_are_those_of_the_expressions() -> None:
    sample = asked("Is The red cup left of a dog?", "the red cup", "a dog", "a cat", " ")
    assert spelled(sample, expression_spans(sample)) == ["The red cup", "a dog"]
    assert own_texts(sample) == ("the red cup", "a dog")


def test_expression_inside_a_longer_word_does_not_count() -> None:
    assert expression_spans(asked("What is scored here?", "red")) == []


def test_tokens_are_grouped_by_overlap_with_the_referring_words() -> None:
    sample = asked("Show the cup.", "the cup")
    spans = [(0, 0), (0, 4), (5, 8), (9, 12), (12, 13), (0, 0)]
    groups = group_tokens(spans, expression_spans(sample))
    assert groups == ["sos", "user", "referring", "referring", "user", "eos"]
    weights = torch.tensor([[0.4, 0.1, 0.2, 0.15, 0.05, 0.1], [0.1] * 6])
    expected = torch.tensor([[0.4, 0.15, 0.35, 0.1], [0.1, 0.2, 0.2, 0.1]])
    torch.testing.assert_close(sum_by_group(weights, groups), expected)


def test_sink_averages_the_sums_over_prompts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    encoder = load_encoder(str(checkpoint.clip), "cpu")
    assert isinstance(encoder, ClipEncoder)
    samples = [
        asked("Please segment the red cup.", "the red cup"),
        asked("What colour is a big dog?", "a big dog"),
        asked("Please segment the red cup.", "the red cup"),  # again: once is enough
        asked("the whole prompt", "the whole prompt"),  # no words that only ask
        asked("What is this?"),  # none that refer
    ]
    sink = Sink(encoder, Settings())
    sink.observe(Batch(samples[:1], ()))
    sink.observe(Batch(samples[1:], ()))
    numbers = sink.finish(tmp_path).numbers
    assert numbers["prompts"] == 2
    expected = torch.zeros(2, 4)
    for sample in samples[:2]:
        [attention] = encoder.text_attention([sample.prompt])
        referring = sample.texts[0].split()
        for layer, weights in enumerate(attention.weights):
            for (start, stop), weight in zip(attention.spans[1:-1], weights[1:-1], strict=True):
                inside = any(sample.prompt[start:stop] in word for word in referring)
                expected[layer, 2 if inside else 1] += weight / 2
            expected[layer, 0] += weights[0] / 2
            expected[layer, 3] += weights[-1] / 2
    found = [[layer[name]["mean"] for name in GROUPS] for layer in numbers["layers"]]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-6)
    assert sum(found[-1]) == pytest.approx(1, abs=1e-4)
    with Image.open(tmp_path / "sink.png") as plot:
        assert plot.width > 900
        assert plot.height > 700


def test_sink_without_a_prompt_of_both_kinds_is_told(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    sink = Sink(load_encoder(str(checkpoint.clip), "cpu"), Settings())
    sink.observe(Batch([asked("What is this?")], ()))
    with pytest.raises(AnalysisError, match="No prompt has both"):
        sink.finish(tmp_path)


def test_noun_chunks_refer_unless_they_are_pronouns() -> None:
    def chunk(start: int, end: int, tag: str) -> Any:
        return SimpleNamespace(start_char=start, end_char=end, root=SimpleNamespace(pos_=tag))

    def pipeline(text: str) -> Any:
        assert text == "Can you show the cup?"
        return SimpleNamespace(noun_chunks=[chunk(4, 7, "PRON"), chunk(13, 20, "NOUN")])

    sample = asked("Can you show the cup?")
    assert spelled(sample, NounChunks(pipeline)(sample)) == ["the cup"]


def test_noun_chunks_of_a_real_document_of_spacy() -> None:
    spacy = pytest.importorskip("spacy")
    tokens = __import__("spacy.tokens", fromlist=["Doc"])
    pipeline = spacy.blank("en")

    def parsed(text: str) -> Any:
        document = tokens.Doc(
            pipeline.vocab,
            words=["Can", "you", "segment", "the", "red", "cup", "?"],
            spaces=[True, True, True, True, True, False, False],
            pos=["AUX", "PRON", "VERB", "DET", "ADJ", "NOUN", "PUNCT"],
            heads=[2, 2, 2, 5, 5, 2, 2],
            deps=["aux", "nsubj", "ROOT", "det", "amod", "dobj", "punct"],
        )
        assert document.text == text
        return document

    sample = asked("Can you segment the red cup?")
    assert spelled(sample, NounChunks(parsed)(sample)) == ["the red cup"]


def test_pipeline_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    with pytest.raises(OptionsError, match="no such spaCy pipeline is installed"):
        load_noun_chunks("en_nothing_of_the_kind")
    spacy.blank("en").to_disk(tmp_path)
    with pytest.raises(OptionsError, match="has no parser"):
        load_noun_chunks(str(tmp_path))


def test_missing_spacy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(OptionsError, match="--spacy needs spaCy; install it"):
        load_noun_chunks("en_core_web_sm")
