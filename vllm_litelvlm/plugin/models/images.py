"""The images of an encoder batch, on their way through vLLM's tower."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_litelvlm.plugin.models.tower import VllmTower
from vllm_litelvlm.plugin.stopwatch import Section
from vllm_litelvlm.pruning.base import to_device


@dataclass(frozen=True)
class VllmImages:
    """See :class:`vllm_litelvlm.vision.images.Images`.

    ``model`` is our LlavaForConditionalGeneration; ``pixels`` are bytes, uint8 [images, side,
    side, 3], or numbers; those of images whose features are kept are not looked at.
    What the tower and the projector take is no part of ``section``.
    """

    model: Any
    pixels: Tensor
    keys: Sequence[bytes]
    section: Section

    @property
    def patches(self) -> int:
        """Patch tokens of one image."""
        return int(self._tower.embeddings.num_patches)

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    @property
    def tower(self) -> VllmTower:
        """The tower's blocks, on these images."""
        return VllmTower(self._tower, self.pixels, self.model.litelvlm_numbers)

    def run(self, images: Sequence[int], with_input: bool) -> tuple[Tensor, Tensor | None]:
        """Run vLLM's tower as it is."""
        pixels = self.pixels
        if list(images) != list(range(len(pixels))):
            pixels = pixels.index_select(0, to_device(images, self.device))
        with self.section.pause():
            pixel_values = self.model.litelvlm_numbers(pixels)
            if not with_input:
                return self.model.vision_tower(pixel_values, feature_select_strategy="full"), None
            last = len(self._tower.encoder.layers)
            both = self.model.vision_tower(
                pixel_values, select_layers=[last - 1, last], feature_select_strategy="full"
            )
        feature_input, hidden = both.chunk(2, dim=-1)
        return hidden, feature_input

    def project(self, patches: Tensor) -> Tensor:
        """Patch tokens behind vLLM's projector."""
        with self.section.pause():
            projected: Tensor = self.model.multi_modal_projector(patches)
        return projected

    def embed(self, ids: Tensor) -> Tensor:
        """By the language model's own layer."""
        embedded: Tensor = self.model.litelvlm_embed(ids)
        return embedded

    @property
    def _tower(self) -> Any:
        return self.model.vision_tower.vision_model
