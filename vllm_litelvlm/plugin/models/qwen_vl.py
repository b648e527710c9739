"""Qwen2.5-VL and Qwen3-VL whose language model gets only the visual tokens that a text needs."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

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
from vllm_litelvlm.plugin.models.qwen_tower import HeardAttention, Patches
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.processor import PARCELS
from vllm_litelvlm.plugin.stopwatch import Section
from vllm_litelvlm.pruning.base import Selection, Signal
from vllm_litelvlm.vision.attention import FROM_ATTENTION
from vllm_litelvlm.vision.embeddings import EmbeddingGuidance, TokenGrid

#: The field of pixels by what they are of.
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class PrunedQwen(GridPositions, PrunedModel):
    """Mixed into vLLM's classes for Qwen-VLs."""

    #: vLLM's CUDA graphs of encoders go past ``embed_multimodal``.
    supports_encoder_cudagraph: ClassVar = False
    # Of vLLM's classes.
    config: Any
    visual: Any
    language_model: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        stock: Any = super()
        stock.__init__(vllm_config=vllm_config, prefix=prefix)
        self.litelvlm_begin(vllm_config)
        self.litelvlm_visual_tokens = (self.config.image_token_id, self.config.video_token_id)
        self.litelvlm = EmbeddingGuidance(self.language_model.embed_input_ids)

    def litelvlm_forget(self) -> None:
        """Nothing is kept."""

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
        """One for each size of pictures; the tower runs on all together."""
        media = batch.media
        assert isinstance(media, Patches)
        orders = [self.litelvlm_token_order(one) for one in media.patches]
        heard = HeardAttention(self.visual.blocks[-1].attn, media, orders)
        listening = heard.listening() if needs & FROM_ATTENTION else nullcontext()
        with section.pause(), listening:
            features = self.visual(media.pixels, grid_thw=media.patches).split(media.tokens)
        alike = defaultdict[tuple[int, int], list[int]](list)
        for item, grid in enumerate(media.grids):
            alike[grid.rows, grid.columns].append(item)
        groups = []
        for (_, columns), items in alike.items():
            tokens = TokenGrid(
                media.alike(items, features),
                columns,
                self.config.text_config.hidden_size,
                heard.of(items) if needs & FROM_ATTENTION else None,
            )
            frames = [item for item in items for _ in range(media.grids[item].frames)]
            signals = self.litelvlm.signals(tokens, [batch.text_ids[one] for one in frames], needs)
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
