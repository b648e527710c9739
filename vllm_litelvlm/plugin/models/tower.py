"""vLLM's CLIP tower, opened: its blocks one by one, and the weights of what they begin with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce
from vllm.model_executor.models.clip import CLIPVisionTransformer

from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.pruning.base import to_device

#: Where vLLM keeps the steps of quantised activations that are known before.
_FIXED_STEPS = ("input_scale", "input_global_scale")


@dataclass(frozen=True)
class VllmTower:
    """A :class:`~vllm_litelvlm.pruning.base.Tower` on a batch of ``pixels``.

    ``numbers`` makes of them what the first block's embeddings take. The blocks' own (fused,
    possibly sharded) weights are used. Attention is PyTorch's, since vLLM's encoder attention takes
    no bias.
    """

    model: CLIPVisionTransformer
    pixels: Tensor
    numbers: Callable[[Tensor], Tensor]

    @property
    def layers(self) -> int:
        """How many blocks LLaVA runs."""
        return len(self.model.encoder.layers)

    def rows(self, images: Sequence[int]) -> "VllmTower":
        """The same tower on some of the images."""
        index = to_device(list(images), self.pixels.device)
        return replace(self, pixels=self.pixels.index_select(0, index))

    def embed(self) -> Tensor:
        """The first block's input, [images, 1 + patches, width]."""
        embeddings = self.model.embeddings(self.numbers(self.pixels))
        embedded: Tensor = self.model.pre_layrnorm(embeddings)
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


def attention_input(block: Any) -> dict[str, Tensor]:
    """The weights of a CLIPEncoderLayer's first norm, query and key, as the block computes them.

    Whole on every rank. A quantised projection, and one that vLLM has packed, are read by what they
    make of unit vectors (:func:`check_attention_input`).

    Returns:
        ``norm``, ``query`` and ``key``, each with ``.weight`` and ``.bias``, in any dtype.
    """
    attention, norm = block.self_attn, block.layer_norm1
    linear = attention.qkv_proj
    width = len(norm.weight)
    units = torch.eye(width, dtype=norm.weight.dtype, device=norm.weight.device)
    weights = linear.quant_method.apply(linear, units, None).T
    parts = {
        "query.weight": weights.chunk(3)[0],
        "key.weight": weights.chunk(3)[1],
        "query.bias": linear.bias.chunk(3)[0],
        "key.bias": linear.bias.chunk(3)[1],
    }
    if attention.tp_size > 1:  # each rank has some of the heads
        parts = {
            name: tensor_model_parallel_all_gather(part.contiguous(), dim=0)
            for name, part in parts.items()
        }
    return {"norm.weight": norm.weight, "norm.bias": norm.bias, **parts}


def check_attention_input(block: Any) -> None:
    """Raise WeightsError where activations are quantised in fixed steps.

    :func:`attention_input` could not read such a projection: a unit vector would not come through.
    """
    linear = block.self_attn.qkv_proj
    if any(getattr(linear, name, None) is not None for name in _FIXED_STEPS):
        raise WeightsError(
            "The model's vision tower is quantised with static activation scales, which litelvlm "
            "cannot see through. Leave the tower unquantised, or its activations dynamic."
        )
