"""transformers' CLIP vision tower: its hidden states, and its blocks one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vllm_litelvlm.pruning.base import Signal, to_device
from vllm_litelvlm.vision.seen import Seen, needs_feature_input, needs_features


@dataclass(frozen=True)
class HfTower:
    """A :class:`~vllm_litelvlm.pruning.base.Tower` on a batch of ``pixel_values``.

    ``model`` is a CLIPVisionModel of transformers, of either layout (:func:`vision_model`).
    """

    model: Any
    pixel_values: Tensor

    @property
    def layers(self) -> int:
        """How many blocks there are up to the feature layer, the last but one."""
        return len(self.model.encoder.layers) - 1

    def rows(self, images: Sequence[int]) -> "HfTower":
        """The same tower on some of the images."""
        index = to_device(list(images), self.pixel_values.device)
        return HfTower(self.model, self.pixel_values.index_select(0, index))

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


def look(llava: Any, pixel_values: Tensor, needs: frozenset[Signal]) -> Seen:
    """What a LLaVA's tower makes of ``pixel_values``, as far as ``needs`` reads it.

    ``llava`` is a LlavaForConditionalGeneration; ``pixel_values`` [images, 3, side, side].
    """
    tower = vision_model(llava.model.vision_tower)
    hidden = feature_input = projected = None
    if needs_features(needs):
        states = tower(pixel_values, output_hidden_states=True).hidden_states
        hidden = states[-2]
        feature_input = states[-3] if needs_feature_input(needs) else None
    if Signal.PROJECTED in needs and hidden is not None:
        projected = llava.model.multi_modal_projector(hidden[:, 1:])
    return Seen(
        images=len(pixel_values),
        patches=tower.embeddings.num_patches,
        device=pixel_values.device,
        hidden=hidden,
        feature_input=feature_input,
        projected=projected,
        tower=HfTower(tower, pixel_values) if Signal.TOWER in needs else None,
    )
