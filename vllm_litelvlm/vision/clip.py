"""The CLIP scorer: what pruning needs of a vision tower beyond the layers that LLaVA runs.

LLaVA reads hidden state -2 of CLIP, which is the *input* of CLIP's last layer. The scores need of
that layer only its first norm and its attention's projections; of the layer before, the
norm, query and key (for the attention of [CLS]); and the post-layernorm and visual projection that
align patches with texts. They are kept here whole on every tensor-parallel rank, whatever the
tower's own sharding, and in float32, whatever its dtype, but for the value and output projections:
products of that size are most of the cost, and of their results only lengths and dot products are
wanted, in which rounding averages out.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from vllm_litelvlm.pruning.base import EMBEDDING_SIGNALS, Signal
from vllm_litelvlm.pruning.scores import (
    cls_attention,
    context_score,
    cosine_score,
    similarity_score,
)
from vllm_litelvlm.vision.images import FROM_FEATURE_INPUT
from vllm_litelvlm.vision.scorer import Scorer
from vllm_litelvlm.vision.side_by_side import side_by_side

#: Signals that are computed from hidden state -2 by the last layer's projections.
LAST_LAYER = frozenset(
    {Signal.CONTEXT, Signal.CONTEXT_NORMALISED, Signal.LAST_ATTENTION, Signal.LAST_KEYS}
)


class ClipScorer(Scorer["LastLayer"]):
    """Scores by what a CLIP was trained for, and by the attention of its [CLS].

    Args:
        config: of the vision tower.
        projection_dim: width of the space that patches and texts share.
        dtype: of the value and output projections.
    """

    kind: ClassVar[str] = "CLIP"
    from_feature_input: ClassVar[frozenset[Signal]] = FROM_FEATURE_INPUT

    def __init__(
        self, config: CLIPVisionConfig, projection_dim: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        width, self.text_width = config.hidden_size, projection_dim
        self.heads = config.num_attention_heads
        self.layers = config.num_hidden_layers

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, eps=config.layer_norm_eps, dtype=torch.float32)

        def square(dtype: torch.dtype = torch.float32) -> nn.Linear:
            return nn.Linear(width, width, dtype=dtype)

        self.last_norm, self.last_query = norm(), square()
        self.last_key, self.last_value = square(), square(dtype)
        self.last_output = square(dtype)
        self.feature_norm, self.feature_query, self.feature_key = norm(), square(), square()
        self.post_norm = norm()
        self.projection = nn.Linear(width, projection_dim, bias=False, dtype=torch.float32)

    def clip_names(self) -> dict[str, str]:
        """Own parameter name to the tensor's name in a CLIP checkpoint."""
        last = f"vision_model.encoder.layers.{self.layers - 1}"
        feature = f"vision_model.encoder.layers.{self.layers - 2}"
        modules = {
            "last_norm": f"{last}.layer_norm1",
            "last_query": f"{last}.self_attn.q_proj",
            "last_key": f"{last}.self_attn.k_proj",
            "last_value": f"{last}.self_attn.v_proj",
            "last_output": f"{last}.self_attn.out_proj",
            "feature_norm": f"{feature}.layer_norm1",
            "feature_query": f"{feature}.self_attn.q_proj",
            "feature_key": f"{feature}.self_attn.k_proj",
            "post_norm": "vision_model.post_layernorm",
            "projection": "visual_projection",
        }
        names = {}
        for own, _ in self.named_parameters():
            module, _, kind = own.rpartition(".")
            names[own] = f"{modules[module]}.{kind}"
        return names

    def last_layer(self, hidden: Tensor) -> "LastLayer":
        """Of hidden state -2."""
        return LastLayer(self, hidden)

    @torch.no_grad()
    def follow(self, feature_layer: Mapping[str, Tensor]) -> None:
        """Take the weights of the feature layer's ``norm``, ``query`` and ``key`` as they are."""
        for name, tensor in feature_layer.items():
            self.get_parameter(f"feature_{name}").copy_(tensor)

    @torch.no_grad()
    def image_signals(
        self,
        hidden: Tensor,
        feature_input: Tensor | None,
        needs: frozenset[Signal],
        last: "LastLayer | None" = None,
    ) -> dict[Signal, Tensor]:
        """The needed signals that depend on the images alone.

        Args:
            hidden: hidden state -2, [images, 1 + patches, width], [CLS] first, any float dtype.
            feature_input: hidden state -3, the same shape; for what is computed from it.
            needs: the signals to compute; those that are not the scorer's are passed over.
            last: of ``hidden``, where :meth:`text_signals` gets it too.
        """
        values: dict[Signal, Tensor] = {}
        if needs & LAST_LAYER:
            values |= self._last_layer_signals(last or LastLayer(self, hidden), needs)
        if needs & FROM_FEATURE_INPUT:
            assert feature_input is not None
            values |= self._feature_layer_signals(feature_input.float(), needs)
        return values

    @torch.no_grad()
    def text_signals(
        self,
        hidden: Tensor,
        texts: Sequence[Tensor],
        needs: frozenset[Signal],
        last: "LastLayer | None" = None,
    ) -> dict[Signal, Tensor]:
        """The needed signals that depend on the texts too: Eq. 4, its cosine, and the value path.

        The value path is a patch's own way through the last layer: norm, value and output
        projection, without attention, residual and feed-forward half (MaskCLIP, ECCV 2022;
        ClearCLIP, ECCV 2024).

        Where lengths do not matter, ``(post_norm(h) W^T) . t = post_norm(h) . (t W)``: the texts
        are projected back, one small product a text instead of one a patch; the score is the same.

        Args:
            hidden: as for :meth:`image_signals`.
            texts: one embedding tensor an image, float32 [texts, projection_dim].
            needs: the signals to compute.
            last: as for :meth:`image_signals`.
        """
        values: dict[Signal, Tensor] = {}
        if not needs & EMBEDDING_SIGNALS:
            return values
        padded = side_by_side(texts)
        if needs & {Signal.SIMILARITY, Signal.VALUE}:
            back = padded @ self.projection.weight
        if needs & {Signal.SIMILARITY, Signal.COSINE}:
            normed = self.post_norm(hidden[:, 1:].float())
        if Signal.SIMILARITY in needs:
            values[Signal.SIMILARITY] = similarity_score(normed, back)
        if Signal.COSINE in needs:
            values[Signal.COSINE] = cosine_score(self.projection(normed), padded)
        if Signal.VALUE in needs:
            path = self.last_output((last or LastLayer(self, hidden)).values).float()
            values[Signal.VALUE] = similarity_score(self.post_norm(path), back)
        return values

    @torch.no_grad()
    def aligned(self, hidden: Tensor) -> Tensor:
        """In CLIP's shared space, [images, patches, projection_dim]."""
        aligned: Tensor = self.projection(self.post_norm(hidden[:, 1:].float()))
        return aligned

    def _last_layer_signals(
        self, last: "LastLayer", needs: frozenset[Signal]
    ) -> dict[Signal, Tensor]:
        """Eq. 5 in both forms, and what PruMerge reads of the same layer."""
        values: dict[Signal, Tensor] = {}
        normed = last.normed
        query, patches = self.last_query(normed[:, 0]), normed[:, 1:]
        if needs & {Signal.CONTEXT_NORMALISED, Signal.LAST_KEYS}:
            keys = self.last_key(patches)
        if needs & {Signal.CONTEXT, Signal.CONTEXT_NORMALISED}:
            lengths = torch.linalg.vector_norm(last.values, dim=-1, dtype=torch.float32)
        if Signal.CONTEXT in needs:
            logits = folded_logits(query, self.last_key, patches, heads=1).squeeze(1)
            values[Signal.CONTEXT] = context_score(logits, lengths)
        if Signal.CONTEXT_NORMALISED in needs:
            unit = nn.functional.normalize
            logits = (unit(keys, dim=-1) @ unit(query, dim=-1)[:, :, None]).squeeze(2)
            logits = logits / query.shape[-1] ** 0.5
            values[Signal.CONTEXT_NORMALISED] = context_score(logits, lengths)
        if Signal.LAST_ATTENTION in needs:
            values[Signal.LAST_ATTENTION] = cls_attention(
                folded_logits(query, self.last_key, normed, heads=1)
            )
        if Signal.LAST_KEYS in needs:
            values[Signal.LAST_KEYS] = keys
        return values

    def _feature_layer_signals(
        self, feature_input: Tensor, needs: frozenset[Signal]
    ) -> dict[Signal, Tensor]:
        """What VisionZip and VisPruner read of the layer whose output LLaVA reads."""
        values: dict[Signal, Tensor] = {}
        normed = self.feature_norm(feature_input)
        if Signal.CLS_ATTENTION in needs:
            query = self.feature_query(normed[:, 0])
            values[Signal.CLS_ATTENTION] = cls_attention(
                folded_logits(query, self.feature_key, normed, self.heads)
            )
        if Signal.KEYS in needs:
            values[Signal.KEYS] = mean_over_heads(self.feature_key, normed, self.heads)[:, 1:]
        return values


class LastLayer:
    """What the signals of the last layer have in common; nothing is computed before it is read.

    ``hidden`` is as for :meth:`ClipScorer.image_signals`.
    """

    def __init__(self, scorer: ClipScorer, hidden: Tensor) -> None:
        self._scorer, self.hidden = scorer, hidden

    @cached_property
    def normed(self) -> Tensor:
        """Behind the first norm, float32 [images, 1 + patches, width]."""
        normed: Tensor = self._scorer.last_norm(self.hidden.float())
        return normed

    @cached_property
    def values(self) -> Tensor:
        """Of the patches, [images, patches, width], in the value projection's dtype."""
        project = self._scorer.last_value
        values: Tensor = project(self.normed[:, 1:].to(project.weight.dtype))
        return values


def folded_logits(query: Tensor, key: nn.Linear, tokens: Tensor, heads: int) -> Tensor:
    """Attention logits of one query without computing a key for every token.

    ``q . (W x + b) = (W^T q) . x + q . b``: the query is folded back through the key projection,
    and what is the same for every token is left out, as a softmax does not see it.

    Args:
        query: [images, width].
        key: the key projection.
        tokens: its input, [images, tokens, width].
        heads: number of attention heads.

    Returns:
        [images, heads, tokens], up to a constant for each head.
    """
    by_head = query.unflatten(-1, (heads, -1))
    back = torch.einsum("ihd,hdw->ihw", by_head, key.weight.unflatten(0, (heads, -1)))
    scale, nothing = by_head.shape[-1] ** -0.5, back.new_empty(1, 1, 1)  # which beta leaves out
    return torch.baddbmm(nothing, back, tokens.transpose(1, 2), beta=0, alpha=scale)


def mean_over_heads(layer: nn.Linear, tokens: Tensor, heads: int) -> Tensor:
    """``layer(tokens)``, mean over heads, [images, tokens, head width]: of the weights, at once."""
    weight, bias = layer.weight.unflatten(0, (heads, -1)), layer.bias.unflatten(0, (heads, -1))
    return nn.functional.linear(tokens, weight.mean(dim=0), bias.mean(dim=0))
