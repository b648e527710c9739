"""SigLIP and SigLIP-2, which have no [CLS]: the probe of their attention pooling stands for it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.evaluation.analysis.encoder import Score
from vllm_litelvlm.evaluation.analysis.two_towers import TwoTowers
from vllm_litelvlm.pruning.scores import context_score


class SiglipEncoder(TwoTowers):
    """A SiglipModel; SigLIP-2 of fixed resolution is one too."""

    kind = "SigLIP"
    labels: ClassVar[Mapping[Score, str]] = {
        Score.EOS: "text embedding, hidden state -2",
        Score.EOS_COSINE: "text embedding, hidden state -2, cosine",
        Score.EOS_LAST: "text embedding, last layer",
        Score.CLS: "pooled image for [CLS], hidden state -2",
        Score.CLS_LAST: "pooled image for [CLS], last layer",
        Score.VALUE: "text embedding, value path (ours, not the paper's)",
        Score.CONTEXT: "context score (Eq. 5) with the pooling probe for [CLS]",
        Score.RECEIVED: "attention received from all patches, last layer (appendix D.2)",
        Score.CLS_ATTENTION: "attention of the pooling probe for [CLS]",
    }
    context = Score.RECEIVED
    notes = (
        "SigLIP has no [CLS]: the probe of its attention pooling and the pooled image stand for "
        "it. It has no [EOS] either: its text embedding, of the last token, stands for that (the "
        "paper's appendix D.2 takes the mean over a text's tokens). "
        "Patches are compared behind the last norm, as they enter the pooling.",
        "The value path is this package's own candidate, not the paper's: each patch of the last "
        "layer goes through the pooling head alone, as if it were the whole image.",
        "In LiteLVLM the attention that a patch receives from all others takes the place of "
        "Eq. 5 (the paper's appendix D.2, which leaves open how).",
    )

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, image_processor, tokenizer)
        if not getattr(self.vision, "use_head", True):
            raise CompatibilityError(
                f"The SigLIP at {name!r} has no pooling head (vision_use_head is false), so images "
                "and texts have no common space; use a checkpoint that has one."
            )

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`TwoTowers.embed`. Padded to full length and not masked, as in training."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.text_tokens,
            return_tensors="pt",
        )
        embeddings: Tensor = self.model.text_model(
            tokens["input_ids"].to(self.device)
        ).pooler_output
        return embeddings

    def _scores(
        self, hidden: Tensor, last: Tensor, owners: Tensor, texts: Tensor
    ) -> dict[Score, Tensor]:
        head, norm = self.vision.head, self.vision.post_layernorm
        early, late = norm(hidden), norm(last)
        alone = head(late.flatten(0, 1)[:, None]).unflatten(0, late.shape[:2])
        unit = nn.functional.normalize
        attention, context = self._pooling(late)

        def against(patches: Tensor, targets: Tensor) -> Tensor:
            return torch.einsum("ipw,iw->ip", patches[owners], targets)

        return {
            Score.EOS: against(early, texts),
            Score.EOS_COSINE: against(unit(early, dim=-1), unit(texts, dim=-1)),
            Score.EOS_LAST: against(late, texts),
            Score.CLS: against(early, head(early)[owners]),
            Score.CLS_LAST: against(late, head(late)[owners]),
            Score.VALUE: against(alone, texts),
            Score.CONTEXT: context[owners],
            Score.RECEIVED: self._received(hidden)[owners],
            Score.CLS_ATTENTION: attention[owners],
        }

    def _pooling(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The probe's attention, mean over heads, and Eq. 5 with it, both [images, patches]."""
        pool = self.vision.head.attention
        query, key, value = (
            nn.functional.linear(tokens, weight, bias)
            for tokens, weight, bias in zip(
                (self.vision.head.probe[0], patches, patches),
                pool.in_proj_weight.chunk(3),
                pool.in_proj_bias.chunk(3),
                strict=True,
            )
        )
        heads = pool.num_heads
        logits = torch.einsum(
            "hw,iphw->ihp", query[0].unflatten(-1, (heads, -1)), key.unflatten(-1, (heads, -1))
        )
        width = query.shape[-1]
        attention = (logits * (width / heads) ** -0.5).softmax(dim=-1).mean(dim=1)
        lengths = torch.linalg.vector_norm(value, dim=-1)
        return attention, context_score(logits.sum(dim=1) * width**-0.5, lengths)

    def _received(self, hidden: Tensor) -> Tensor:
        """Attention of all patches to each in the last layer, [images, patches]."""
        layer = self.vision.encoder.layers[-1]
        normed = layer.layer_norm1(hidden)
        heads = layer.self_attn.num_heads
        query, key = (
            project(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        received: Tensor = logits.softmax(dim=-1).mean(dim=(1, 2))
        return received
