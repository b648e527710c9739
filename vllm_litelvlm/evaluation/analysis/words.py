"""Which words of a prompt refer, and which only ask."""

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.evaluation.samples import Sample

#: First character and the one behind the last.
Span = tuple[int, int]
#: The referring stretches of a sample's prompt; none where they are not known.
FindReferring = Callable[[Sample], list[Span]]


def expression_spans(sample: Sample) -> list[Span]:
    """Where the prompt has the sample's own expressions, whatever their case."""
    return [span for text in sample.texts for span in _places(text.strip(), sample.prompt)]


def own_texts(sample: Sample) -> tuple[str, ...]:
    """The expressions that the prompt has itself; others only guide, and mean other regions."""
    return tuple(text for text in sample.texts if _places(text.strip(), sample.prompt))


def _places(text: str, prompt: str) -> list[Span]:
    """Where a prompt has a text as whole words."""
    if not text:
        return []
    pattern = rf"(?<!\w){re.escape(text)}(?!\w)"
    return [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)]


class NounChunks:
    """The noun chunks that a spaCy pipeline finds, but for pronouns ("you", "it").

    The paper names spaCy for this and no rule; noun chunks are ours.

    Args:
        pipeline: of spaCy, with a parser and a tagger.
    """

    def __init__(self, pipeline: Callable[[str], Any]) -> None:
        self._pipeline = pipeline

    def __call__(self, sample: Sample) -> list[Span]:
        """Where the prompt has them."""
        return list(self._spans(self._pipeline(sample.prompt)))

    def _spans(self, document: Any) -> Iterator[Span]:
        for chunk in document.noun_chunks:
            if chunk.root.pos_ != "PRON":
                yield chunk.start_char, chunk.end_char


def load_noun_chunks(name: str) -> NounChunks:
    """By an installed spaCy pipeline. Raises OptionsError where it or spaCy is missing."""
    try:
        spacy = import_module("spacy")
    except ModuleNotFoundError as error:
        if error.name != "spacy":
            raise
        raise OptionsError(
            "--spacy needs spaCy; install it (pip install spacy) and an English pipeline, or "
            "leave the option out: the data set's expressions then tell which words refer."
        ) from None
    try:
        pipeline = spacy.load(name)
    except OSError as error:
        raise OptionsError(
            f"--spacy {name}: no such spaCy pipeline is installed ({error})."
        ) from None
    if not pipeline.has_pipe("parser"):
        raise OptionsError(
            f"--spacy {name}: this pipeline has no parser, so it finds no noun chunks; name one "
            "that has, such as en_core_web_sm."
        )
    return NounChunks(pipeline)
