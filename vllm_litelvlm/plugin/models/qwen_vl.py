"""Qwen2.5-VL and Qwen3-VL: images of any size, each merged to a grid of visual tokens."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.options import PruningOptions
from vllm_litelvlm.plugin.family import Family, refuse_drafts_and_stages
from vllm_litelvlm.plugin.grid import Placing, Span
from vllm_litelvlm.plugin.models.grid_positions import GridPositions
from vllm_litelvlm.plugin.models.pruned import Batch, Group, PrunedModel
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.pixels import Picture
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.processor import PARCELS_FIELD, PruningProcessor
from vllm_litelvlm.plugin.stopwatch import Section
from vllm_litelvlm.pruning.base import Selection, Signal
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.vision.attention import FROM_ATTENTION, LastAttention
from vllm_litelvlm.vision.embeddings import NO_TOKEN, EmbeddingGuidance, TokenGrid

#: Above 0, which is what vLLM asks about; and what it would leave of a video by it is all.
_NOTHING_PRUNED = 1e-17
#: Words of the longest guiding text that vLLM's memory profile has: they cost next to nothing.
_WORDS = 64


class QwenFamily(Family):
    """Qwen-VLs: text is compared with the visual tokens in the language model's own embeddings."""

    defaults: ClassVar[PruningOptions] = PruningOptions(positions="original")

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def traits(self, config: Any) -> Traits:
        """Without a CLIP's signals; pictures are seen whole."""
        return Traits(
            self.name,
            signals=EmbeddingGuidance.available,
            layered=False,
            crops=False,
            parameters={"fovea": {"guidance": "similarity"}},
        )

    def image_token(self, config: Any) -> int:
        """``<|image_pad|>``."""
        return int(config.image_token_id)

    def check(self, vllm_config: VllmConfig) -> None:
        """Signals come from the tower's last attention, which has to be there and be whole."""
        model_config = vllm_config.model_config
        multimodal, vision = model_config.multimodal_config, model_config.hf_config.vision_config
        assert multimodal is not None
        full = getattr(vision, "fullatt_block_indexes", None)
        if full is not None and vision.depth - 1 not in full:
            raise CompatibilityError(
                f"litelvlm needs a vision tower whose last block (number {vision.depth - 1}) "
                f"attends to the whole image; this model's fullatt_block_indexes are {full}. "
                "Serve it without --plugin litelvlm."
            )
        if multimodal.mm_encoder_tp_mode == "data":
            raise CompatibilityError(
                "litelvlm does not see what --mm-encoder-tp-mode data spreads over ranks; leave it "
                "out, or serve without --plugin litelvlm."
            )
        if vllm_config.compilation_config.compile_mm_encoder:
            raise CompatibilityError(
                "litelvlm does not see into a compiled vision tower; leave compile_mm_encoder out "
                "of --compilation-config, or serve without --plugin litelvlm."
            )
        if multimodal.video_pruning_rate:
            raise CompatibilityError(
                f"--video-pruning-rate is {multimodal.video_pruning_rate}, by which vLLM prunes "
                "videos itself, blind to the text; leave it out, or serve without --plugin "
                "litelvlm."
            )

    def install_positions(self, vllm_config: VllmConfig) -> None:
        """Rows of positions these models have; vLLM's switch for the rest is named for videos."""
        refuse_drafts_and_stages(vllm_config)
        assert vllm_config.model_config.multimodal_config is not None
        vllm_config.model_config.multimodal_config.video_pruning_rate = _NOTHING_PRUNED


class QwenProcessor(PruningProcessor):
    """What the processors of Qwen-VLs have in common."""

    def count_tokens(self, picture: Picture, others: Mapping[str, object]) -> int:
        """As many as the picture has cells at the size to which it is resized."""
        rows, columns = self._grid(picture, others)
        return rows * columns

    def positions_of(self, plan: Plan, picture: Picture, others: Mapping[str, object]) -> int:
        """Those of a grid are the longer of its sides."""
        rows, columns = self._grid(picture, others)
        return _span(plan.pruner, plan.original, 0, plan.count, (rows, columns)).positions

    def tokenize_texts(self, texts: Sequence[str]) -> Tensor:
        """By the language model's own tokenizer; without special tokens."""
        tokenizer = self.info.get_tokenizer()
        rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        longest = max(map(len, rows))
        padded = [[*row, *[NO_TOKEN] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.int32)

    def longest_texts(self, count: int) -> tuple[str, ...]:
        """Of some length."""
        return tuple(f"{number:04d}{' a' * _WORDS}" for number in range(count))

    def _grid(self, picture: Picture, others: Mapping[str, object]) -> tuple[int, int]:
        """Rows and columns of the picture's visual tokens."""
        assert picture.size is not None
        width, height = picture.size
        resized, _ = self.info._get_vision_info(
            image_width=width,
            image_height=height,
            image_processor=self.info.get_image_processor(**others),
            mm_kwargs=others,
        )
        vision = self.info.get_hf_config().vision_config
        cell = vision.patch_size * vision.spatial_merge_size
        return resized.height // cell, resized.width // cell


class Qwen25VLProcessor(QwenProcessor, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's."""


class Qwen3VLProcessor(QwenProcessor, Qwen3VLMultiModalProcessor):
    """Qwen3-VL's."""


@dataclass(frozen=True)
class Patches:
    """A step's images: ``pixels`` [patches, channels of a patch], of images of ``grids``.

    A grid is frames, rows and columns in patches; ``merge`` of them a side are a cell.
    """

    pixels: Tensor
    grids: Sequence[Sequence[int]]
    merge: int

    @cached_property
    def cells(self) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of each image in visual tokens."""
        return [
            (time, rows // self.merge, columns // self.merge) for time, rows, columns in self.grids
        ]

    @property
    def tokens(self) -> list[int]:
        """Visual tokens of each image, before pruning."""
        return [frames * rows * columns for frames, rows, columns in self.cells]

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    def some(self, images: slice) -> "Patches":
        """A run of them."""
        ends = [0, *accumulate(tokens * self.merge**2 for tokens in self.tokens)]
        start, stop, _ = images.indices(len(self.grids))
        return Patches(self.pixels[ends[start] : ends[stop]], self.grids[images], self.merge)


@dataclass
class Heard:
    """What a tower's last attention got."""

    projected: list[Tensor] = field(default_factory=list)
    rotated: list[tuple[Tensor, Tensor]] = field(default_factory=list)


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
        """The step's images."""
        grids = fields["image_grid_thw"].tolist()
        return Patches(fields["pixel_values"], grids, self.visual.spatial_merge_size)

    def litelvlm_whole(self, fields: dict[str, Any]) -> MultiModalEmbeddings:
        """By stock's own functions."""
        stock: Any = self
        whole: MultiModalEmbeddings = stock._process_image_input(
            stock._parse_and_validate_image_input(**fields)
        )
        return whole

    def litelvlm_groups(
        self, batch: Batch, needs: frozenset[Signal], section: Section
    ) -> list[Group]:
        """One for each size of pictures; the tower runs on all together."""
        media = batch.media
        assert isinstance(media, Patches)
        with section.pause(), self._listening(bool(needs & FROM_ATTENTION)) as heard:
            features = self.visual(media.pixels, grid_thw=media.grids)
        attention = self._attention(heard, media)
        places = defaultdict[tuple[int, int], list[int]](list)
        for image, (_, rows, columns) in enumerate(media.cells):
            places[rows, columns].append(image)
        of_each = features.split(media.tokens)
        groups = []
        for (_, columns), images in places.items():

            def pictures(parts: Sequence[Tensor], of: Sequence[int] = images) -> Tensor:
                """One a frame, of tensors one an image."""
                return torch.cat(
                    [parts[image].unflatten(0, (media.cells[image][0], -1)) for image in of]
                )

            frames = [image for image in images for _ in range(media.cells[image][0])]
            grid = TokenGrid(
                pictures(of_each),
                columns,
                self.config.text_config.hidden_size,
                None if attention is None else attention(pictures),
            )
            signals = self.litelvlm.signals(grid, [batch.text_ids[one] for one in frames], needs)
            groups.append(Group(frames, signals))
        return groups

    def litelvlm_tokens(self, selections: Sequence[Selection]) -> list[Tensor]:
        """The tower's merger was their projector."""
        return [selection.tokens for selection in selections]

    def litelvlm_spans(self, batch: Batch) -> list[Span]:
        """Of each image."""
        assert isinstance(batch.media, Patches)
        return [
            _span(order.pruner, order.original, 0, order.count, (rows, columns))
            for order, (_, rows, columns) in zip(batch.orders, batch.media.cells, strict=True)
        ]

    def litelvlm_feature_spans(self, feature: MultiModalFeatureSpec) -> list[Span]:
        """One an image."""
        assert feature.data is not None, "vLLM keeps what is on the CPU of a model with rows"
        order = Parcel.unpack(feature.data[PARCELS_FIELD].data).order
        _, rows, columns = feature.data["image_grid_thw"].data.tolist()
        merge = self.visual.spatial_merge_size
        cells = (rows // merge, columns // merge)
        start = feature.mm_position.offset
        return [_span(order.pruner, order.original, start, order.count, cells)]

    def litelvlm_cell_order(self, grid: Sequence[int]) -> Tensor | None:
        """Where the tower has each cell of an image, in raster order; None where it is that."""
        return None

    @contextmanager
    def _listening(self, wanted: bool) -> Iterator[Heard]:
        """Note what the tower's last attention gets while it runs."""
        heard = Heard()
        if not wanted:
            yield heard
            return
        last = self.visual.blocks[-1].attn

        def note_projected(_: Any, __: Any, output: tuple[Tensor, Any]) -> None:
            heard.projected.append(output[0])

        def note_rotated(_: Any, __: Any, given: dict[str, Any]) -> None:
            heard.rotated.append((given["query"], given["key"]))

        handles = [
            last.qkv.register_forward_hook(note_projected),
            last.attn.register_forward_pre_hook(note_rotated, with_kwargs=True),
        ]
        try:
            yield heard
        finally:
            for handle in handles:
                handle.remove()

    def _attention(
        self, heard: Heard, media: Patches
    ) -> Callable[[Callable[[Sequence[Tensor]], Tensor]], LastAttention] | None:
        """The last attention of pictures that are taken out of the batch; None where unheard."""
        if not heard.projected:
            return None
        last = self.visual.blocks[-1].attn
        heads, width = last.num_attention_heads_per_partition, last.hidden_size_per_attention_head
        [projected], [(rotated_query, rotated_key)] = heard.projected, heard.rotated
        query, key, value = projected.squeeze(1).unflatten(-1, (3, heads, width)).unbind(1)
        orders = [self.litelvlm_cell_order(grid) for grid in media.grids]

        def of_each(patches: Tensor) -> list[Tensor]:
            """One [cells, patches of a cell, heads, head width] an image, in raster order."""
            cells = patches.unflatten(0, (-1, media.merge**2)).split(media.tokens)
            return [
                part if order is None else part.index_select(0, order)
                for part, order in zip(cells, orders, strict=True)
            ]

        parts = [
            of_each(one)
            for one in (query, key, value, rotated_query.squeeze(0), rotated_key.squeeze(0))
        ]
        total = tensor_model_parallel_all_reduce if last.tp_size > 1 else _alone

        def taken(pictures: Callable[[Sequence[Tensor]], Tensor]) -> LastAttention:
            query, key, value, rotated_query, rotated_key = map(pictures, parts)
            return LastAttention(
                query, key, value, rotated_query, rotated_key, heads * last.tp_size, total
            )

        return taken


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def _span(pruner: Any, original: bool, start: int, tokens: int, cells: tuple[int, int]) -> Span:
    """An image's tokens in a prompt."""
    rows, columns = cells
    if isinstance(pruner, KeepAll):
        placing = Placing.WHOLE
    else:
        placing = Placing.ORIGINAL if original else Placing.COMPACT
    behind = pruner.places(rows * columns).stop - rows * columns
    return Span(start, tokens, rows, columns, placing, behind=behind)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class LiteLVLMQwen25VL(PrunedQwen, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with pruning behind the merger."""

    litelvlm_family = QwenFamily("Qwen2.5-VL")

    def litelvlm_cell_order(self, grid: Sequence[int]) -> Tensor:
        """Its tower has the cells window by window."""
        order: Tensor = self.visual.get_rope_by_thw(*grid)[2].argsort()
        return order.to(self.visual.device, non_blocking=True)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class LiteLVLMQwen3VL(PrunedQwen, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with pruning behind the mergers, deepstack's among them."""

    litelvlm_family = QwenFamily("Qwen3-VL")
