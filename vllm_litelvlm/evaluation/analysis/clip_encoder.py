"""CLIP and MetaCLIP: [CLS] and [EOS] as the paper reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.encoder import Score
from vllm_litelvlm.evaluation.analysis.two_towers import TwoTowers
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.pruning.scores import cls_attention
from vllm_litelvlm.vision.clip import ClipScorer, folded_logits


@dataclass(frozen=True)
class TextAttention:
    """Attention of a text's end token.

    ``weights``, float32 [layers, tokens], mean over heads, [SOS] first and [EOS] last; a layer's
    sum to 1. ``spans`` are the tokens' characters in the text, empty for the two.
    """

    weights: Tensor
    spans: Sequence[tuple[int, int]]


class ClipEncoder(TwoTowers):
    """A CLIPModel, of OpenAI's, MetaCLIP's or OpenCLIP's weights."""

    kind = "CLIP"
    labels: ClassVar[Mapping[Score, str]] = {
        Score.EOS: "[EOS], hidden state -2 (the paper's)",
        Score.EOS_COSINE: "[EOS], hidden state -2, cosine",
        Score.EOS_LAST: "[EOS], last layer",
        Score.CLS: "[CLS], hidden state -2 (the paper's)",
        Score.CLS_LAST: "[CLS], last layer",
        Score.VALUE: "[EOS], value path (ours, not the paper's)",
        Score.CONTEXT: "context score (Eq. 5)",
        Score.CLS_ATTENTION: "attention of [CLS], last layer",
    }
    context = Score.CONTEXT
    notes = (
        "Similarity is the dot product of embeddings in CLIP's common space (Eq. 4), "
        "nothing normalised, unless it says cosine. [EOS] is the text embedding; [CLS] is of the "
        "same hidden state as the patches, aligned as they are.",
        "The value path is this package's own candidate, not the paper's: a patch's own way "
        "through the last layer, norm, value and output projection, without attention, residual "
        "and feed-forward half (after MaskCLIP and ClearCLIP). LiteLVLM takes the lowest patches "
        'with guidance "similarity" and the highest with guidance "value".',
    )

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, image_processor, tokenizer)
        # Other ways to compute attention do not tell its weights.
        model.text_model.set_attn_implementation("eager")
        scorer = ClipScorer(model.config.vision_config, model.config.projection_dim)
        tensors = model.state_dict()
        scorer.load_state_dict({own: tensors[it] for own, it in scorer.clip_names().items()})
        self._scorer = scorer.eval().to(model.device)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`TwoTowers.embed`. The tower is causal, so padding needs no mask."""
        ids = self._tokenize(texts)["input_ids"].to(self.device)
        embeddings: Tensor = self.model.text_projection(self.model.text_model(ids).pooler_output)
        return embeddings

    @torch.no_grad()
    def text_attention(self, texts: Sequence[str]) -> list[TextAttention]:
        """What the end token of each text attends to."""
        tokens = self._tokenize(texts, return_offsets_mapping=True)
        ids = tokens["input_ids"]
        layers = self.model.text_model(ids.to(self.device), output_attentions=True).attentions
        weights = torch.stack([layer.float().mean(dim=1).cpu() for layer in layers], dim=1)
        found = []
        # The first end token is the text's; behind it stands padding, which may look the same.
        ends = (ids == self.tokenizer.eos_token_id).int().argmax(dim=1).tolist()
        for of_text, end, offsets in zip(weights, ends, tokens["offset_mapping"], strict=True):
            spans = [(int(start), int(stop)) for start, stop in offsets[: end + 1]]
            spans[0], spans[-1] = (0, 0), (0, 0)
            found.append(TextAttention(of_text[:, end, : end + 1], spans))
        return found

    def _tokenize(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.text_tokens,
            split_special_tokens=True,
            return_tensors="pt",
            **options,
        )

    def _scores(
        self, hidden: Tensor, last: Tensor, owners: Tensor, texts: Tensor
    ) -> dict[Score, Tensor]:
        scorer = self._scorer
        own, own_last = hidden[owners], last[owners]

        def against(state: Tensor, target: Tensor, signal: Signal = Signal.SIMILARITY) -> Tensor:
            """A signal of the patches of each pair with one target a pair."""
            rows = scorer.text_signals(state, list(target[:, None]), frozenset({signal}))
            return rows[signal][:, 0]

        def aligned_cls(state: Tensor) -> Tensor:
            aligned: Tensor = scorer.projection(scorer.post_norm(state[:, 0].float()))
            return aligned

        context = scorer.image_signals(hidden, None, frozenset({Signal.CONTEXT}))[Signal.CONTEXT]
        normed = scorer.last_norm(hidden.float())
        heads = folded_logits(
            scorer.last_query(normed[:, 0]), scorer.last_key, normed, scorer.heads
        )
        return {
            Score.EOS: against(own, texts),
            Score.EOS_COSINE: against(own, texts, Signal.COSINE),
            Score.EOS_LAST: against(own_last, texts),
            Score.CLS: against(own, aligned_cls(own)),
            Score.CLS_LAST: against(own_last, aligned_cls(own_last)),
            Score.VALUE: against(own, texts, Signal.VALUE),
            Score.CONTEXT: context[owners],
            Score.CLS_ATTENTION: cls_attention(heads)[owners],
        }
