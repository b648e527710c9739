"""What the end token of a text attends to (Figures 3a and 3b): the text attention sink."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.base import Analysis, AnalysisError, Batch, Result
from vllm_litelvlm.evaluation.analysis.clip_encoder import ClipEncoder, TextAttention
from vllm_litelvlm.evaluation.analysis.encoder import Encoder
from vllm_litelvlm.evaluation.analysis.estimate import Gathered
from vllm_litelvlm.evaluation.analysis.markdown import table
from vllm_litelvlm.evaluation.analysis.sink_plot import Example, draw
from vllm_litelvlm.evaluation.analysis.two_towers import TwoTowers
from vllm_litelvlm.evaluation.analysis.words import Span, expression_spans, load_noun_chunks

#: [SOS], words that only ask, words that refer, and the end token itself.
GROUPS = ("sos", "user", "referring", "eos")
_HEADS = ("[SOS]", "user words", "referring words", "[EOS] itself")


def group_tokens(spans: Sequence[Span], referring: Sequence[Span]) -> list[str]:
    """The group of each token of a text, [SOS] first and [EOS] last."""
    between = [
        "referring"
        if any(start < stop_of and stop > start_of for start_of, stop_of in referring)
        else "user"
        for start, stop in spans[1:-1]
    ]
    return ["sos", *between, "eos"]


def sum_by_group(weights: Tensor, groups: Sequence[str]) -> Tensor:
    """Attention that each of :data:`GROUPS` gets, [layers, groups], of [layers, tokens]."""
    members = torch.tensor([[group == name for group in groups] for name in GROUPS])
    return weights @ members.to(weights.dtype).T


class Sink(Analysis):
    """Attention of [EOS] in every layer of the text tower, mean over heads, summed over words.

    Prompts without words of both kinds are passed over. Punctuation counts as the words around
    it: as referring inside an expression, else as the user's.
    """

    name = "sink"
    title = "What [EOS] attends to"
    reads_images = False

    def __init__(self, encoder: Encoder, *settings: Any) -> None:
        super().__init__(encoder, *settings)
        spacy = self.settings.spacy
        self._find = load_noun_chunks(spacy) if spacy else expression_spans
        self._found: list[list[Gathered]] = []
        self._per_token = {name: Gathered() for name in GROUPS}
        self._prompts: set[str] = set()
        self._example: Example | None = None

    @classmethod
    def obstacle(cls, encoder: Encoder) -> str | None:
        """SigLIP's text tower lacks both special tokens, and Qwen-VL has no text tower."""
        if isinstance(encoder, ClipEncoder):
            return None
        if not isinstance(encoder, TwoTowers):
            return (
                f"{encoder.kind} has no text tower, so no token of a text attends to others before "
                "it is compared with the image."
            )
        return (
            f"{encoder.kind}'s text tower has no [SOS], and it is not causal: what its last token "
            "attends to, padding included, is not what CLIP's [EOS] attends to."
        )

    def observe(self, batch: Batch) -> None:
        """See :meth:`Analysis.observe`; equal prompts are taken once."""
        referring: dict[str, list[Span]] = {}
        for sample in batch.samples:
            if sample.prompt not in self._prompts and (spans := self._find(sample)):
                referring[sample.prompt] = spans
        if not referring:
            return
        assert isinstance(self.encoder, ClipEncoder)
        attentions = self.encoder.text_attention(list(referring))
        for attention, (prompt, spans) in zip(attentions, referring.items(), strict=True):
            groups = group_tokens(attention.spans, spans)
            if set(groups) == set(GROUPS):
                self._add(prompt, attention, groups)

    def _add(self, prompt: str, attention: TextAttention, groups: Sequence[str]) -> None:
        number = len(self._prompts)
        self._prompts.add(prompt)
        sums = sum_by_group(attention.weights, groups)
        if not self._found:
            self._found = [[Gathered() for _ in GROUPS] for _ in sums]
            self._example = Example(prompt, attention, groups)
        for row, layer in zip(self._found, sums.tolist(), strict=True):
            for gathered, value in zip(row, layer, strict=True):
                gathered.add(number, value)
        for name, value in zip(GROUPS, sums[-1].tolist(), strict=True):
            self._per_token[name].add(number, value / groups.count(name))

    def finish(self, folder: Path) -> Result:
        """See :meth:`Analysis.finish`."""
        if self._example is None:
            raise AnalysisError(
                "No prompt has both words that refer and words that only ask, so what the end "
                "token attends to cannot be told apart."
            )
        estimates = [[gathered.estimate() for gathered in row] for row in self._found]
        draw(folder / f"{self.name}.png", self.encoder.name, _HEADS, estimates, self._example)
        rows = [
            [f"layer {number}", *(found.show() for found in layer)]
            for number, layer in enumerate(estimates, start=1)
        ]
        per_token = [self._per_token[name].estimate() for name in GROUPS]
        rows.append(["last layer, for each token", *(found.show() for found in per_token)])
        by = f"spaCy ({self.settings.spacy})" if self.settings.spacy else "the data set"
        told = (
            f"Sum over a prompt's tokens, mean over heads, ± standard error over "
            f"{len(self._prompts)} prompts. Which words refer is told by {by}."
        )
        return Result(
            numbers={
                "prompts": len(self._prompts),
                "layers": [
                    {name: asdict(found) for name, found in zip(GROUPS, layer, strict=True)}
                    for layer in estimates
                ],
                "last_layer_per_token": {
                    name: asdict(found) for name, found in zip(GROUPS, per_token, strict=True)
                },
            },
            table=f"{table(['attention of [EOS] to', *_HEADS], rows)}\n\n{told}",
        )
