"""vLLM's CLIP tower, opened between its blocks for methods that merge tokens there."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.models.clip import CLIPVisionTransformer

from vllm_litelvlm.pruning.base import to_device


@dataclass(frozen=True)
class VllmTower:
    """A :class:`~vllm_litelvlm.pruning.base.Tower` on a batch of ``pixel_values``.

    The blocks' own (fused, possibly sharded) weights are used. Attention is PyTorch's, since
    vLLM's encoder attention takes no bias.
    """

    model: CLIPVisionTransformer
    pixel_values: Tensor

    @property
    def layers(self) -> int:
        """How many blocks LLaVA runs."""
        return len(self.model.encoder.layers)

    def rows(self, images: Sequence[int]) -> "VllmTower":
        """The same tower on some of the images."""
        index = to_device(list(images), self.pixel_values.device)
        return VllmTower(self.model, self.pixel_values.index_select(0, index))

    def embed(self) -> Tensor:
        """The first block's input, [images, 1 + patches, width]."""
        embedded: Tensor = self.model.pre_layrnorm(self.model.embeddings(self.pixel_values))
        return embedded

    def attend(self, layer: int, hidden: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`vllm_litelvlm.pruning.base.Tower.attend`."""
        block = self.model.encoder.layers[layer]
        attention = block.self_attn
        fused, _ = attention.qkv_proj(block.layer_norm1(hidden))
        query, key, value = (
            part.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for part in fused.chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=sizes.log()[:, None, None].to(query.dtype)
        )
        out, _ = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        keys = key.float().sum(dim=1)
        if attention.tp_size > 1:  # each rank has some of the heads
            keys = tensor_model_parallel_all_reduce(keys)
        return hidden + out, keys / attention.num_heads

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        """See :meth:`vllm_litelvlm.pruning.base.Tower.feed_forward`."""
        block = self.model.encoder.layers[layer]
        out: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
        return out
