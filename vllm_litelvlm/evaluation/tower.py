"""transformers' CLIP vision tower: its hidden states, and its blocks one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import to_device


@dataclass(frozen=True)
class HfTower:
    """A :class:`~vllm_litelvlm.pruning.base.Tower` on a batch of ``pixel_values``.

    ``model`` is a CLIPVisionModel of transformers, of either layout (:func:`vision_model`), of
    which the first ``layers`` blocks run.
    """

    model: Any
    pixel_values: Tensor
    layers: int

    def rows(self, images: Sequence[int]) -> "HfTower":
        """The same tower on some of the images."""
        index = to_device(list(images), self.pixel_values.device)
        return HfTower(self.model, self.pixel_values.index_select(0, index), self.layers)

    def embed(self) -> Tensor:
        """The first block's input, [images, 1 + patches, width]."""
        embedded: Tensor = self.model.pre_layrnorm(self.model.embeddings(self.pixel_values))
        return embedded

    def attend(self, layer: int, hidden: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`vllm_litelvlm.pruning.base.Tower.attend`."""
        block = self.model.encoder.layers[layer]
        attention, normed = block.self_attn, block.layer_norm1(hidden)
        query, key, value = (
            project(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=sizes.log()[:, None, None].to(query.dtype)
        )
        out: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return hidden + out, key.float().mean(dim=1)

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        """See :meth:`vllm_litelvlm.pruning.base.Tower.feed_forward`."""
        block = self.model.encoder.layers[layer]
        out: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
        return out


def vision_model(tower: Any) -> Any:
    """The module with the blocks: transformers 5 dropped the level ``vision_model``."""
    return getattr(tower, "vision_model", tower)


@dataclass(frozen=True)
class HfImages:
    """The :class:`~vllm_litelvlm.vision.images.Images` of a LLaVA of transformers.

    ``llava`` is a LlavaForConditionalGeneration; ``pixel_values`` [images, 3, side, side].
    """

    llava: Any
    pixel_values: Tensor

    @property
    def keys(self) -> list[bytes]:
        """Every image is its own."""
        return [str(number).encode() for number in range(len(self.pixel_values))]

    @property
    def patches(self) -> int:
        """See :class:`~vllm_litelvlm.vision.images.Images`."""
        return int(self._model.embeddings.num_patches)

    @property
    def device(self) -> torch.device:
        """See :class:`~vllm_litelvlm.vision.images.Images`."""
        return self.pixel_values.device

    @property
    def tower(self) -> HfTower:
        """See :class:`~vllm_litelvlm.vision.images.Images`."""
        return HfTower(self._model, self.pixel_values, len(self._model.encoder.layers) - 1)

    def run(self, images: Sequence[int], with_input: bool) -> tuple[Tensor, Tensor | None]:
        """See :meth:`vllm_litelvlm.vision.images.Images.run`."""
        pixel_values = self.pixel_values[list(images)]
        states = self._model(pixel_values, output_hidden_states=True).hidden_states
        return states[-2], states[-3] if with_input else None

    def project(self, patches: Tensor) -> Tensor:
        """See :meth:`vllm_litelvlm.vision.images.Images.project`."""
        projected: Tensor = self.llava.model.multi_modal_projector(patches)
        return projected

    def embed(self, ids: Tensor) -> Tensor:
        """See :meth:`vllm_litelvlm.vision.images.Images.embed`."""
        embedded: Tensor = self.llava.get_input_embeddings()(ids)
        return embedded

    @property
    def _model(self) -> Any:
        return vision_model(self.llava.model.vision_tower)
