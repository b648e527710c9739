"""LLaVA-1.5 whose language model gets only the visual tokens that a request's text needs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from vllm_litelvlm.plugin.config import guidance_config, position_limit
from vllm_litelvlm.plugin.metrics import worker_metrics
from vllm_litelvlm.plugin.models.images import VllmImages
from vllm_litelvlm.plugin.models.positions import OriginalPositions, placed
from vllm_litelvlm.plugin.models.weights import FollowedWeights
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.plan import WorkOrder
from vllm_litelvlm.plugin.processor import (
    PARCELS_FIELD,
    LiteLVLMProcessor,
    build_processor,
)
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.plugin.runners import follow_resets, mend_cpu_runner
from vllm_litelvlm.plugin.stopwatch import Stopwatch
from vllm_litelvlm.plugin.trace import trace_selections
from vllm_litelvlm.pruning.base import Selection
from vllm_litelvlm.pruning.batch import needed_signals, prune
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.registry import build_pruner
from vllm_litelvlm.vision.checkpoint import read_clip_config
from vllm_litelvlm.vision.clip import patch_count
from vllm_litelvlm.vision.guidance import Guidance
from vllm_litelvlm.vision.pixels import PixelValues

#: More than the prefix cache has room for; they take 9 MiB.
_BASES = 16_384


@MULTIMODAL_REGISTRY.register_processor(
    build_processor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class LiteLVLMLlava(OriginalPositions, LlavaForConditionalGeneration):
    """vLLM's LLaVA with pruning between the vision tower and the projector."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._guidance_config = guidance_config(self.config)
        self._stopwatch = Stopwatch()
        tower = self.config.vision_config
        self.litelvlm_image_token = self.config.image_token_index
        self.litelvlm_patches = patch_count(tower)
        self.litelvlm_last_position = position_limit(vllm_config.model_config) - 1
        if self._guidance_config.server.original_positions and current_platform.is_cpu():
            mend_cpu_runner()
        #: Images that go through tower and guidance together. vLLM's scheduler counts what is kept
        #: of them, so a step may have more than the memory profile saw, which sets this.
        step = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self._at_once = max(1, step // self.litelvlm_patches)
        #: None where pixels do not come as bytes.
        self.litelvlm_pixels: PixelValues | None = None
        #: None where images are not served, and so the next.
        self.litelvlm: Guidance | None = None
        self._followed: FollowedWeights | None = None
        if self.multimodal_config.get_limit_per_prompt("image") > 0:
            clip = read_clip_config(self._guidance_config.clip_model, tower)
            dtype = vllm_config.model_config.dtype
            processor = MULTIMODAL_REGISTRY.create_processor(vllm_config.model_config)
            assert isinstance(processor, LiteLVLMProcessor)
            if processor.bytes_of is not None:
                self.litelvlm_pixels = PixelValues(processor.bytes_of, dtype)
            self.litelvlm = Guidance(tower, clip, dtype)
            self._add_caches(self.litelvlm, dtype)
            self._followed = FollowedWeights(
                self.litelvlm, self.vision_tower, self._guidance_config, vllm_config
            )
            follow_resets(v2=vllm_config.use_v2_model_runner)

    def _add_caches(self, guidance: Guidance, dtype: torch.dtype) -> None:
        """Allocate them with the weights, so that vLLM's memory profile finds them taken."""
        server = self._guidance_config.server
        pruners = [build_pruner(one.method, one.parameters) for one in server.sets.values()]
        needs = frozenset().union(*(pruner.needs for pruner in pruners))
        guidance.add_feature_cache(int(server.feature_cache_gb * 2**30), dtype, needs)
        guidance.add_text_cache(server.text_cache)
        guidance.add_base_cache(_BASES)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the model, and guidance from the same weights and its CLIP."""
        stock = super().load_weights
        return (
            set(stock(weights)) if self._followed is None else self._followed.load(weights, stock)
        )

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """The model's, and guidance's weights: of all else vLLM's deep sleep keeps nothing."""
        yield from super().named_buffers(*args, **kwargs)
        if self._followed is not None:
            yield from self._followed.buffers()

    def litelvlm_forget(self) -> None:
        """Empty the caches, as vLLM does its own where weights may have changed."""
        if self._followed is not None:
            self._followed.forget()

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Kept tokens of every image of the step, one [kept, width] tensor an image."""
        parcels = [Parcel.unpack(one) for one in _items(kwargs.pop(PARCELS_FIELD, ()))]
        if not parcels:
            return []
        orders = [parcel.order for parcel in parcels]
        text_ids = [parcel.text_ids for parcel in parcels]
        keys = [parcel.key for parcel in parcels]
        pixels = self._together(kwargs["pixel_values"])
        assert self.litelvlm is not None
        whole = all(isinstance(one.pruner, KeepAll) and one.window is None for one in orders)
        if whole and not self.litelvlm.keeps_features(keys):
            # Stock vLLM, bit for bit.
            trace_selections(orders, text_ids, None, self.litelvlm_patches)
            stock = self._parse_and_validate_image_input(pixel_values=self.litelvlm_numbers(pixels))
            return self._finished(self._process_image_input(stock), orders)
        assert len(orders) == len(text_ids) == len(keys) == len(pixels)
        if any(isinstance(order.pruner, Profile) for order in orders):
            return self._profile(pixels, text_ids, orders)
        embeddings: list[Tensor] = []
        for start in range(0, len(orders), self._at_once):
            some = slice(start, start + self._at_once)
            embeddings += self._embed(pixels[some], keys[some], text_ids[some], orders[some])
        return embeddings

    def _together(self, pixels: object) -> Tensor:
        """The step's pixels as one tensor: bytes, or numbers where some come as such.

        They come as bytes, uint8 [side, side, 3] each, or as numbers, [1, 3, side, side].
        """
        if isinstance(pixels, Tensor) and pixels.dtype == torch.uint8:
            return pixels
        each = (one if one.ndim == 4 else one[None] for one in _items(pixels))
        return torch.cat([self.litelvlm_numbers(one) for one in each])

    def litelvlm_numbers(self, pixels: Tensor) -> Tensor:
        """What the tower takes, [images, 3, side, side], of bytes or of numbers."""
        if pixels.dtype != torch.uint8:
            return pixels
        assert self.litelvlm_pixels is not None
        values: Tensor = self.litelvlm_pixels(pixels)
        return values

    def _embed(
        self,
        pixels: Tensor,
        keys: list[bytes],
        text_ids: list[Tensor],
        orders: list[WorkOrder],
    ) -> Sequence[Tensor] | Tensor:
        """The tokens of as many images as memory is there for."""
        selections = self._select(pixels, keys, text_ids, orders)
        trace_selections(orders, text_ids, selections, self.litelvlm_patches)
        return self._finished(self._project(selections), orders, selections)

    def _finished(
        self,
        embeddings: Sequence[Tensor] | Tensor,
        orders: list[WorkOrder],
        selections: list[Selection] | None = None,
    ) -> Sequence[Tensor] | Tensor:
        """Tokens as the runner takes them: with their places, where it asks for those."""
        if not self._guidance_config.server.original_positions:
            return embeddings
        return placed(embeddings, orders, selections, self.litelvlm_patches)

    def _profile(
        self, pixels: Tensor, text_ids: list[Tensor], orders: list[WorkOrder]
    ) -> MultiModalEmbeddings:
        """Run vLLM's memory profile, whose images are one and the same, as if they were not."""
        assert self.litelvlm is not None
        self._at_once = len(orders)
        keys = [number.to_bytes(4, "little") for number in range(len(orders))]
        selections = self._select(pixels, keys, text_ids, orders)
        embeddings = self._finished(self._project(selections), orders, selections)
        self.litelvlm.forget()
        return embeddings

    def _project(self, selections: list[Selection]) -> Sequence[Tensor]:
        """Every image's tokens behind the projector, which runs once."""
        tokens = [selection.tokens for selection in selections]
        projected: Tensor = self.multi_modal_projector(torch.cat(tokens))
        parts: tuple[Tensor, ...] = projected.split([len(kept) for kept in tokens])
        return parts

    def _select(
        self,
        pixels: Tensor,
        keys: list[bytes],
        text_ids: list[Tensor],
        orders: list[WorkOrder],
    ) -> list[Selection]:
        assert self._followed is not None
        guidance = self._followed.up_to_date()
        metrics = worker_metrics() if get_tensor_model_parallel_rank() == 0 else None
        guidance_seconds = metrics.guidance_seconds if metrics is not None else None
        selection_seconds = metrics.selection_seconds if metrics is not None else None
        needs = needed_signals(orders)
        device = pixels.device
        with self._stopwatch.time(guidance_seconds, device) as section:
            images = VllmImages(self, pixels, keys, section)
            signals = guidance.signals(images, text_ids, needs)
        if metrics is not None:
            metrics.show_caches(guidance.feature_cache, guidance.text_cache)
        with self._stopwatch.time(selection_seconds, device):
            return prune(signals, orders, guidance.bases(signals, keys, orders))


def _items(field: object) -> list[Tensor]:
    """A batched field as one tensor an image: vLLM stacks equal shapes and lists others."""
    assert isinstance(field, Tensor | list | tuple)
    return list(field)
