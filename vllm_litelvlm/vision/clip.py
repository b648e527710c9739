"""The CLIP scorer: what pruning needs of a vision tower beyond the layers that LLaVA runs.

LLaVA reads hidden state -2 of CLIP, which is the *input* of CLIP's last layer. The scores need of
that layer only its first norm and its query, key and value projections; of the layer before, the
norm, query and key (for the attention of [CLS]); and the post-layernorm and visual projection that
align patches with texts. They are kept here in float32 and whole on every tensor-parallel rank,
whatever the tower's own dtype and sharding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionConfig

from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.scores import cls_attention, context_score, similarity_score


class ClipScorer(nn.Module):
    """Turns a tower's hidden states and a request's texts into signals.

    Args:
        config: of the vision tower.
        projection_dim: width of the space that patches and texts share.
    """

    def __init__(self, config: CLIPVisionConfig, projection_dim: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.layers = config.num_hidden_layers

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, eps=config.layer_norm_eps, dtype=torch.float32)

        def square() -> nn.Linear:
            return nn.Linear(width, width, dtype=torch.float32)

        self.last_norm, self.last_query = norm(), square()
        self.last_key, self.last_value = square(), square()
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

    @torch.no_grad()
    def signals(
        self,
        hidden: Tensor,
        feature_input: Tensor | None,
        texts: Sequence[Tensor],
        needs: frozenset[Signal],
    ) -> Signals:
        """Compute the needed signals of a batch of images.

        Args:
            hidden: hidden state -2, [images, 1 + patches, width], [CLS] first, any float dtype.
            feature_input: hidden state -3, the same shape; only for ``Signal.CLS_ATTENTION``.
            texts: one embedding tensor an image, float32 [texts, projection_dim].
            needs: the signals to compute.
        """
        images, tokens, _ = hidden.shape
        hidden = hidden.float()
        similarity = context = normalised = attention = None
        if Signal.SIMILARITY in needs:
            similarity = self._similarity(hidden[:, 1:], texts)
        if needs & {Signal.CONTEXT, Signal.CONTEXT_NORMALISED}:
            normed = self.last_norm(hidden)
            query = self.last_query(normed[:, 0])
            keys = self.last_key(normed[:, 1:])
            values = self.last_value(normed[:, 1:])
            if Signal.CONTEXT in needs:
                context = context_score(query, keys, values)
            if Signal.CONTEXT_NORMALISED in needs:
                unit = nn.functional.normalize
                normalised = context_score(unit(query, dim=-1), unit(keys, dim=-1), values)
        if Signal.CLS_ATTENTION in needs:
            assert feature_input is not None, "CLS attention reads hidden state -3"
            normed = self.feature_norm(feature_input.float())
            query, keys = self.feature_query(normed[:, 0]), self.feature_key(normed)
            attention = cls_attention(query, keys, self.heads)
        return Signals(
            images=images,
            patches=tokens - 1,
            device=hidden.device,
            text_counts=[len(text) for text in texts],
            similarity=similarity,
            context=context,
            context_normalised=normalised,
            cls_attention=attention,
        )

    def _similarity(self, patches: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """Eq. 4 as ``(post_norm(h) W^T) . t = post_norm(h) . (t W)``: texts are projected back.

        That is one small product a text instead of one a patch; the score is the same.
        """
        padded = pad_sequence(list(texts), batch_first=True)
        return similarity_score(self.post_norm(patches), padded @ self.projection.weight)
