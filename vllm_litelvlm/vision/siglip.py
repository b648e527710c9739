"""The SigLIP scorer: what pruning needs of a tower without [CLS] beyond the layers LLaVA runs.

LLaVA reads hidden state -2 of SigLIP. Behind it come the last layer, a norm, and attention pooling:
a learned probe attends to all patches, and what it gathers passes through an MLP. The scores run
that last layer whole, and of the pooling what they need. Everything is here whole on every
tensor-parallel rank. Norms, the last layer's queries and keys, and the pooling's inputs are in
float32 whatever the tower's dtype; values, outputs and MLPs, which are most of the cost, are not.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.activations import ACT2FN

from vllm_litelvlm.pruning.base import EMBEDDING_SIGNALS, Signal
from vllm_litelvlm.pruning.scores import context_score, cosine_score, similarity_score
from vllm_litelvlm.vision.attention import LastAttention
from vllm_litelvlm.vision.scorer import Scorer
from vllm_litelvlm.vision.side_by_side import side_by_side

_RECEIVED = frozenset({Signal.CLS_ATTENTION, Signal.KEYS})


class SiglipScorer(Scorer["SiglipLastLayer"]):
    """Scores by what a SigLIP was trained for, with stand-ins for [CLS] and [EOS].

    * SIMILARITY (Eq. 4): a patch of hidden state -2 behind the last norm, and the mean embedding of
      the text's tokens, which is the paper's [EOS] where there is none (appendix D.2). COSINE: of
      the same two.
    * VALUE, this package's own: a patch of the last layer goes through the pooling head alone, as
      if it were the whole image, against the text embedding that SigLIP was trained to match.
    * CONTEXT (Eq. 5): what a patch contributes to the pooled image, by query, keys and values of
      the pooling, as one head of full width; CONTEXT_NORMALISED with query and keys normalised.
    * CLS_ATTENTION, LAST_ATTENTION: the attention that a patch receives from all in the last layer
      (appendix D.2), mean over heads, and as one head of full width. KEYS, LAST_KEYS: keys of the
      same layer, mean over heads, and whole.

    Deviations: the paper takes for [CLS] the visual token that receives most attention, in Eq. 5
    too. Here the pooling's probe has that place in Eq. 5, since to gather the image is what it was
    trained for, and received attention itself is the importance of methods that read [CLS]'s. The
    paper names no layer; the last one is where SigLIP and its LLaVA need no second hidden state.

    Args:
        config: of the SigLIP's own vision tower, its last layer included.
        dtype: of values, outputs and MLPs.
    """

    kind: ClassVar[str] = "SigLIP"

    def __init__(self, config: SiglipVisionConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        #: Of a text's mean embedding, and behind it the trained one.
        self.text_width = 2 * width
        self.heads, self.layers = config.num_attention_heads, config.num_hidden_layers
        self._activation = ACT2FN[config.hidden_act]

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, eps=config.layer_norm_eps, dtype=torch.float32)

        def linear(into: int, out: int, dtype: torch.dtype = dtype) -> nn.Linear:
            return nn.Linear(into, out, dtype=dtype)

        self.last_norm, self.last_mlp_norm = norm(), norm()
        self.last_query = linear(width, width, torch.float32)
        self.last_key = linear(width, width, torch.float32)
        self.last_value, self.last_output = linear(width, width), linear(width, width)
        self.last_widen, self.last_narrow = linear(width, inner), linear(inner, width)
        self.post_norm, self.pool_mlp_norm = norm(), norm()
        self.probe = nn.Parameter(torch.zeros(1, 1, width, dtype=torch.float32))
        #: Query, key and value.
        self.pool_input = linear(width, 3 * width, torch.float32)
        self.pool_output = linear(width, width)
        self.pool_widen, self.pool_narrow = linear(width, inner), linear(inner, width)

    def clip_names(self) -> dict[str, str]:
        """Own parameter name to the tensor's name in a SigLIP checkpoint."""
        last = f"vision_model.encoder.layers.{self.layers - 1}"
        head = "vision_model.head"
        modules = {
            "last_norm": f"{last}.layer_norm1",
            "last_query": f"{last}.self_attn.q_proj",
            "last_key": f"{last}.self_attn.k_proj",
            "last_value": f"{last}.self_attn.v_proj",
            "last_output": f"{last}.self_attn.out_proj",
            "last_mlp_norm": f"{last}.layer_norm2",
            "last_widen": f"{last}.mlp.fc1",
            "last_narrow": f"{last}.mlp.fc2",
            "post_norm": "vision_model.post_layernorm",
            "pool_output": f"{head}.attention.out_proj",
            "pool_mlp_norm": f"{head}.layernorm",
            "pool_widen": f"{head}.mlp.fc1",
            "pool_narrow": f"{head}.mlp.fc2",
        }
        names = {
            "probe": f"{head}.probe",
            "pool_input.weight": f"{head}.attention.in_proj_weight",
            "pool_input.bias": f"{head}.attention.in_proj_bias",
        }
        for own, _ in self.named_parameters():
            module, _, kind = own.rpartition(".")
            if own not in names:
                names[own] = f"{modules[module]}.{kind}"
        return names

    def last_layer(self, hidden: Tensor) -> "SiglipLastLayer":
        """Of hidden state -2."""
        return SiglipLastLayer(self, hidden)

    @torch.no_grad()
    def image_signals(
        self,
        hidden: Tensor,
        feature_input: Tensor | None,
        needs: frozenset[Signal],
        last: "SiglipLastLayer | None" = None,
    ) -> dict[Signal, Tensor]:
        """See :meth:`Scorer.image_signals`; ``hidden`` is [images, patches, width]."""
        last = last or self.last_layer(hidden)
        values = last.attention(self.heads).signals(needs & _RECEIVED) if needs & _RECEIVED else {}
        if Signal.LAST_ATTENTION in needs:
            values[Signal.LAST_ATTENTION] = last.attention(1).received
        if Signal.LAST_KEYS in needs:
            values[Signal.LAST_KEYS] = last.key
        if Signal.CONTEXT in needs:
            values[Signal.CONTEXT] = self._context(last, normalised=False)
        if Signal.CONTEXT_NORMALISED in needs:
            values[Signal.CONTEXT_NORMALISED] = self._context(last, normalised=True)
        return values

    @torch.no_grad()
    def text_signals(
        self,
        hidden: Tensor,
        texts: Sequence[Tensor],
        needs: frozenset[Signal],
        last: "SiglipLastLayer | None" = None,
    ) -> dict[Signal, Tensor]:
        """See :meth:`Scorer.text_signals`; of a text, the mean embedding, then the trained one."""
        values: dict[Signal, Tensor] = {}
        if not needs & EMBEDDING_SIGNALS:
            return values
        mean, trained = side_by_side(texts).chunk(2, dim=-1)
        if needs & {Signal.SIMILARITY, Signal.COSINE}:
            normed = self.aligned(hidden)
        if Signal.SIMILARITY in needs:
            values[Signal.SIMILARITY] = similarity_score(normed, mean)
        if Signal.COSINE in needs:
            values[Signal.COSINE] = cosine_score(normed, mean)
        if Signal.VALUE in needs:
            alone = self._pooled_alone(last or self.last_layer(hidden))
            values[Signal.VALUE] = similarity_score(alone, trained)
        return values

    @torch.no_grad()
    def aligned(self, hidden: Tensor) -> Tensor:
        """Behind the last norm, [images, patches, width]."""
        aligned: Tensor = self.post_norm(hidden.float())
        return aligned

    def run_last(self, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The last layer's output, as it leaves ``hidden``; all [images, patches, width]."""
        dtype = value.dtype
        by_head = (
            part.to(dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (query, key, value)
        )
        mixed = nn.functional.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)
        attended = hidden.to(dtype) + self.last_output(mixed)
        normed = self.last_mlp_norm(attended.float()).to(dtype)
        out: Tensor = attended + self.last_narrow(self._activation(self.last_widen(normed)))
        return out

    def _context(self, last: "SiglipLastLayer", normalised: bool) -> Tensor:
        """Eq. 5 in either form, float32 [images, patches]."""
        weights, biases = self.pool_input.weight.chunk(3), self.pool_input.bias.chunk(3)
        query = nn.functional.linear(self.probe[0, 0], weights[0], biases[0])
        if normalised:
            unit = nn.functional.normalize
            keys = nn.functional.linear(last.pooled, weights[1], biases[1])
            logits = unit(keys, dim=-1) @ unit(query, dim=-1)
        else:  # the query is folded back; a softmax does not see what the bias adds to all
            logits = last.pooled @ (weights[1].T @ query)
        lengths = torch.linalg.vector_norm(last.pool_values, dim=-1)
        return context_score(logits * len(query) ** -0.5, lengths)

    def _pooled_alone(self, last: "SiglipLastLayer") -> Tensor:
        """Every patch as the pooling gives it of an image of that patch alone, float32.

        The probe attends to the one that there is, so what it gathers is that patch's value.
        """
        gathered = self.pool_output(last.pool_values.to(self.pool_output.weight.dtype))
        normed = self.pool_mlp_norm(gathered.float()).to(gathered.dtype)
        alone: Tensor = gathered + self.pool_narrow(self._activation(self.pool_widen(normed)))
        return alone.float()


class SiglipLastLayer:
    """What signals have in common; nothing is computed before it is read.

    ``hidden`` is hidden state -2, [images, patches, width]; all others have the same shape.
    """

    def __init__(self, scorer: SiglipScorer, hidden: Tensor) -> None:
        self._scorer, self._hidden = scorer, hidden

    def attention(self, heads: int) -> LastAttention:
        """The last layer's, as so many heads."""
        query, key = (
            part.unflatten(-1, (heads, -1))[:, :, None] for part in (self.query, self.key)
        )
        return LastAttention(query, key, key, query, key, heads)  # nothing of it reads values

    @cached_property
    def query(self) -> Tensor:
        """Of the last layer, float32."""
        query: Tensor = self._scorer.last_query(self._normed)
        return query

    @cached_property
    def key(self) -> Tensor:
        """Of the last layer, float32."""
        key: Tensor = self._scorer.last_key(self._normed)
        return key

    @cached_property
    def pooled(self) -> Tensor:
        """What the pooling reads: the last layer's output behind the last norm, float32."""
        project = self._scorer.last_value
        value = project(self._normed.to(project.weight.dtype))
        output = self._scorer.run_last(self._hidden, self.query, self.key, value)
        normed: Tensor = self._scorer.post_norm(output.float())
        return normed

    @cached_property
    def pool_values(self) -> Tensor:
        """Values of the pooling, float32."""
        inputs = self._scorer.pool_input
        return nn.functional.linear(self.pooled, inputs.weight.chunk(3)[2], inputs.bias.chunk(3)[2])

    @cached_property
    def _normed(self) -> Tensor:
        normed: Tensor = self._scorer.last_norm(self._hidden.float())
        return normed
