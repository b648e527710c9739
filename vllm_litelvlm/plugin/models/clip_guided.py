"""What models whose vision tower is a CLIP's, or its kin's, have in common: guidance by that."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig

from vllm_litelvlm.plugin.config import position_limit
from vllm_litelvlm.plugin.models.images import VllmImages
from vllm_litelvlm.plugin.models.positions import OriginalPositions
from vllm_litelvlm.plugin.models.pruned import PrunedModel
from vllm_litelvlm.plugin.models.weights import FollowedWeights
from vllm_litelvlm.plugin.stopwatch import Section
from vllm_litelvlm.pruning.base import Selection, Signal, Signals
from vllm_litelvlm.vision.slots import SlotCache
from vllm_litelvlm.vision.tower_guidance import TowerGuidance
from vllm_litelvlm.vision.tower_kinds import kind_of

#: More than the prefix cache has room for; they take 9 MiB.
_BASES = 16_384


class ClipGuided(OriginalPositions, PrunedModel):
    """Mixed into a LLaVA before vLLM's own class: scored in the tower, pruned before the projector.

    The tower's images are squares of one size; how a picture becomes such, the family says.
    """

    # Of vLLM's classes.
    multimodal_config: Any
    vision_tower: Any
    multi_modal_projector: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        stock: Any = super()
        stock.__init__(vllm_config=vllm_config, prefix=prefix)
        self.litelvlm_begin(vllm_config)
        self.litelvlm_image_token = self.config.image_token_index
        self.litelvlm_last_position = position_limit(vllm_config.model_config) - 1
        #: None where images are not served, and so the next.
        self.litelvlm: TowerGuidance | None = None
        self._followed: FollowedWeights | None = None
        if self.multimodal_config.get_limit_per_prompt("image") > 0:
            dtype = vllm_config.model_config.dtype
            clip_model = self._settings.own["clip_model"]
            self.litelvlm = kind_of(self.config).guide(clip_model, self.config, dtype)
            self._add_caches(self.litelvlm, dtype)
            self._followed = FollowedWeights(
                self.litelvlm, self.vision_tower, self._settings, vllm_config
            )

    def _add_caches(self, guidance: TowerGuidance, dtype: torch.dtype) -> None:
        """Allocate them with the weights, so that vLLM's memory profile finds them taken."""
        server = self._settings.server
        needs = self.litelvlm_needs()
        guidance.add_feature_cache(int(server.feature_cache_gb * 2**30), dtype, needs)
        guidance.add_text_cache(server.text_cache)
        guidance.add_base_cache(_BASES)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the model, and guidance from the same weights and its CLIP."""
        above: Any = super()
        stock = above.load_weights
        return (
            set(stock(weights)) if self._followed is None else self._followed.load(weights, stock)
        )

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """The model's, and guidance's weights: of all else vLLM's deep sleep keeps nothing."""
        stock: Any = super()
        yield from stock.named_buffers(*args, **kwargs)
        if self._followed is not None:
            yield from self._followed.buffers()

    def litelvlm_caches(self) -> tuple[SlotCache | None, SlotCache | None]:
        """Guidance's."""
        assert self.litelvlm is not None
        return self.litelvlm.feature_cache, self.litelvlm.text_cache

    def litelvlm_forget(self) -> None:
        """Empty the caches."""
        if self._followed is not None:
            self._followed.forget()

    def litelvlm_numbers(self, pixels: Tensor) -> Tensor:
        """What the tower takes, [images, 3, side, side], of pixels as they come."""
        return pixels

    def litelvlm_signals(
        self,
        pixels: Tensor,
        keys: Sequence[bytes],
        text_ids: Sequence[Tensor],
        word_ids: Sequence[Tensor],
        needs: frozenset[Signal],
        section: Section,
    ) -> Signals:
        """The needed signals of the tower's images.

        Args:
            pixels: of each image, as :meth:`litelvlm_numbers` takes them.
            keys: one an image.
            text_ids: of each image's texts, int [texts, length], on the CPU.
            word_ids: of each image's words, int [words], on the CPU.
            needs: the signals.
            section: of which what the tower takes is no part.
        """
        assert self._followed is not None
        guidance = self._followed.up_to_date()
        images = VllmImages(self, pixels, keys, section)
        return guidance.signals(images, text_ids, needs, word_ids)

    def litelvlm_tokens(self, selections: Sequence[Selection]) -> Sequence[Tensor]:
        """Behind the projector, which runs once."""
        tokens = [selection.tokens for selection in selections]
        projected: Tensor = self.multi_modal_projector(torch.cat(tokens))
        parts: tuple[Tensor, ...] = projected.split([len(kept) for kept in tokens])
        return parts
