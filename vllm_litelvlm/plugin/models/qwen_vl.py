"""Qwen2.5-VL and Qwen3-VL whose language model gets only the visual tokens that a text needs."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl_moe import (
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLMoeProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_litelvlm.plugin.grid import Span
from vllm_litelvlm.plugin.models.grid_positions import GridPositions
from vllm_litelvlm.plugin.models.pruned import Batch, Group, PrunedModel
from vllm_litelvlm.plugin.models.qwen_front import (
    Grid,
    Qwen3VLProcessor,
    Qwen25VLProcessor,
    QwenFamily,
    span_of,
)
from vllm_litelvlm.plugin.models.qwen_tower import CachedTower, Patches
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.processor import PARCELS
from vllm_litelvlm.plugin.stopwatch import Section
from vllm_litelvlm.pruning.base import Selection, Signal
from vllm_litelvlm.vision.attention import FROM_ATTENTION
from vllm_litelvlm.vision.embeddings import EmbeddingGuidance, TokenGrid
from vllm_litelvlm.vision.pages import PageCache
from vllm_litelvlm.vision.slots import Row

#: The field of pixels by what they are of.
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class PrunedQwen(GridPositions, PrunedModel):
    """Mixed into vLLM's classes for Qwen-VLs."""

    #: vLLM's CUDA graphs of encoders go past ``embed_multimodal``.
    supports_encoder_cudagraph: ClassVar = False
    # Of vLLM's classes.
    visual: Any
    language_model: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        stock: Any = super()
        stock.__init__(vllm_config=vllm_config, prefix=prefix)
        self.litelvlm_begin(vllm_config)
        self.litelvlm_visual_tokens = (self.config.image_token_id, self.config.video_token_id)
        self.litelvlm = EmbeddingGuidance(self.litelvlm_embed)
        dtype = vllm_config.model_config.dtype
        self._tower = CachedTower(self.visual, self.litelvlm_token_order, self._cache(dtype))

    def _cache(self, dtype: torch.dtype) -> PageCache:
        """Allocated with the weights, so that vLLM's memory profile finds it taken."""
        server, attention = self._settings.server, self.visual.blocks[-1].attn
        levels = 1 + len(getattr(self.config.vision_config, "deepstack_visual_indexes", ()))
        needs = self.litelvlm_needs()
        rows: dict[str, Row] = dict.fromkeys(needs & FROM_ATTENTION, ((), torch.float32))
        if Signal.KEYS in rows:
            rows[Signal.KEYS] = (attention.hidden_size_per_attention_head,), torch.float32
        rows[Signal.FEATURES] = (levels * self.config.text_config.hidden_size,), dtype
        return PageCache(int(server.feature_cache_gb * 2**30), rows)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the model; features of other weights are of no use."""
        self.litelvlm_forget()
        stock: Any = super()
        loaded: set[str] = stock.load_weights(weights)
        return loaded

    def litelvlm_caches(self) -> tuple[PageCache, None]:
        """Of features alone: texts cost next to nothing."""
        return self._tower.cache, None

    def litelvlm_forget(self) -> None:
        """Empty the cache."""
        self._tower.cache.clear()

    def litelvlm_keeps(self, keys: Sequence[bytes]) -> bool:
        """Whether they are in the feature cache."""
        return all(key in self._tower.cache for key in keys)

    def litelvlm_media(self, fields: dict[str, Any]) -> Patches:
        """The step's images, or its videos."""
        modality, pixels = next(
            (modality, fields[name]) for modality, name in _PIXELS.items() if name in fields
        )
        patches = fields[f"{modality}_grid_thw"].tolist()
        seconds = fields.get("second_per_grid_ts")
        times = [
            self.litelvlm_times(one[0], None if seconds is None else float(seconds[number]))
            for number, one in enumerate(patches)
        ]
        return Patches(pixels, patches, self.visual.spatial_merge_size, times)

    def litelvlm_times(self, frames: int, seconds: float | None) -> tuple[int, ...]:
        """Of a video's frames, in positions behind the first; ``seconds`` between them."""
        return (0,) * frames

    def litelvlm_whole(self, fields: dict[str, Any]) -> MultiModalEmbeddings:
        """By stock's own functions."""
        stock: Any = self
        whole: MultiModalEmbeddings
        if "pixel_values" in fields:
            whole = stock._process_image_input(stock._parse_and_validate_image_input(**fields))
        else:
            whole = stock._process_video_input(stock._parse_and_validate_video_input(**fields))
        return whole

    def litelvlm_groups(
        self, batch: Batch, needs: frozenset[Signal], section: Section
    ) -> list[Group]:
        """One for each size of pictures."""
        media = batch.media
        assert isinstance(media, Patches)
        wanted = needs & FROM_ATTENTION
        rows = self._tower.rows(media, batch.keys, wanted, section)
        groups = []
        for items in media.groups():
            tokens = TokenGrid(
                media.alike(items, [one[Signal.FEATURES] for one in rows]),
                media.grids[items[0]].columns,
                self.config.text_config.hidden_size,
                {name: media.alike(items, [one[name] for one in rows]) for name in wanted},
            )
            frames = [item for item in items for _ in range(media.grids[item].frames)]
            signals = self.litelvlm.signals(
                tokens,
                [batch.text_ids[one] for one in frames],
                needs,
                [batch.word_ids[one] for one in frames],
            )
            groups.append(Group(frames, signals))
        return groups

    def litelvlm_tokens(self, selections: Sequence[Selection]) -> list[Tensor]:
        """The tower's merger was their projector."""
        return [selection.tokens for selection in selections]

    def litelvlm_spans(self, batch: Batch) -> list[Span]:
        """Of each item."""
        assert isinstance(batch.media, Patches)
        return [
            span_of(order, grid, 0, times)
            for order, grid, times in zip(
                batch.orders, batch.media.grids, batch.media.times, strict=True
            )
        ]

    def litelvlm_feature_spans(self, feature: MultiModalFeatureSpec) -> list[Span]:
        """One an image, and one a run of a video's frames without words between them."""
        assert feature.data is not None, "vLLM keeps what is on the CPU of a model with rows"
        data, modality, place = feature.data, feature.modality, feature.mm_position
        order = Parcel.unpack(data[PARCELS[modality]].data).order
        patches = data[f"{modality}_grid_thw"].data.tolist()
        grid = Grid.of(patches, self.visual.spatial_merge_size)
        if place.is_embed is None:
            seconds = data.get("second_per_grid_ts")
            times = self.litelvlm_times(
                grid.frames, None if seconds is None else float(seconds.data)
            )
            return [span_of(order, grid, place.offset, times)]
        visual = place.is_embed.nonzero()[:, 0].tolist()
        frame = Grid(1, grid.rows, grid.columns)
        starts = visual[:: order.count]
        return [span_of(order, frame, place.offset + start) for start in starts]

    def litelvlm_token_order(self, patches: Sequence[int]) -> Tensor | None:
        """Where the tower has each token of an item, in raster order; None where it is that."""
        return None


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class LiteLVLMQwen25VL(PrunedQwen, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with pruning behind the merger."""

    litelvlm_family = QwenFamily("Qwen2.5-VL")

    def litelvlm_times(self, frames: int, seconds: float | None) -> tuple[int, ...]:
        """By the seconds that a second frame is behind a first."""
        rate = (1.0 if seconds is None else seconds) * self.config.vision_config.tokens_per_second
        return tuple(int(frame * rate) for frame in range(frames))

    def litelvlm_token_order(self, patches: Sequence[int]) -> Tensor:
        """Its tower has them window by window."""
        order: Tensor = self.visual.get_rope_by_thw(*patches)[2].argsort()
        return order.to(self.visual.device, non_blocking=True)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class LiteLVLMQwen3VL(PrunedQwen, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with pruning behind the mergers, deepstack's among them."""

    litelvlm_family = QwenFamily("Qwen3-VL")


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class LiteLVLMQwen3VLMoe(PrunedQwen, Qwen3VLMoeForConditionalGeneration):
    """The same with experts in the language model."""

    litelvlm_family = QwenFamily("Qwen3-VL-MoE")
