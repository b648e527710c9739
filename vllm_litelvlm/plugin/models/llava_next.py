"""LLaVA-NeXT: images of any size, as a base view and tiles, pruned together before the projector.

Every tile is an image to tower and guidance. A budget is for all tokens of an image: methods choose
among the patches of base and tiles, and newlines get their share of the budget; see
:mod:`vllm_litelvlm.vision.tiles`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem
from vllm.multimodal.processing.processor import PromptUpdateInfo

from vllm_litelvlm.plugin.models.clip import ClipFamily, ClipTexts
from vllm_litelvlm.plugin.models.clip_guided import ClipGuided
from vllm_litelvlm.plugin.models.pruned import Batch, Group
from vllm_litelvlm.plugin.pixels import Picture, Pixels
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.processor import ABSENT
from vllm_litelvlm.plugin.stopwatch import Section
from vllm_litelvlm.pruning.base import Selection, Signal
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.vision.checkpoint import check_tower
from vllm_litelvlm.vision.clip_guidance import ClipGuidance
from vllm_litelvlm.vision.tiles import LinedSelection, TileLayout, pooled


def layout_of(config: Any, size: Sequence[int]) -> TileLayout:
    """Of an image of some height and width; ``config`` is the model's."""
    tower = config.vision_config
    pinpoints = tuple((height, width) for height, width in config.image_grid_pinpoints)
    height, width = size
    return TileLayout.of(height, width, pinpoints, tower.image_size, tower.patch_size)


class LlavaNextFamily(ClipFamily):
    """LLaVA-NeXT: several squares an image, and as many tokens as its size asks for."""

    name: ClassVar[str] = "LLaVA-NeXT"

    def traits(self, config: Any) -> Traits:
        """All signals but the tower, in which tiles do not see each other."""
        return Traits(
            self.name,
            signals=ClipGuidance.available - {Signal.TOWER},
            layered=False,
            crops=False,
        )

    def check(self, vllm_config: VllmConfig) -> None:
        """The tower has to be a CLIP's."""
        check_tower(vllm_config.model_config.hf_config)


class LlavaNextProcessor(ClipTexts, LlavaNextMultiModalProcessor):
    """LLaVA-NeXT's processor."""

    def shape(self, picture: Picture) -> tuple[int, int]:
        """By its size."""
        return 1, self._layout(picture).tokens

    def positions_of(self, plan: Plan, picture: Picture) -> int:
        """Those of the whole image, or of what is kept."""
        layout = self._layout(picture)
        if plan.original:
            return len(plan.pruner.places(layout.tokens))
        return layout.count(plan.pruner, plan.budget)

    def preprocess(self, picture: Picture) -> Pixels:
        """The tiles of a picture, and its size.

        Raises VLLMValidationError (HTTP 400) for arguments by which it has other tiles than the
        model's configuration says.
        """
        arguments = self.info.ctx.get_merged_mm_kwargs(picture.arguments)
        refusal = VLLMValidationError(
            f"mm_processor_kwargs {sorted(arguments)} change the tiles of an image, which have to "
            "be those of the model's configuration. Leave them out.",
            parameter="mm_processor_kwargs",
        )
        if "image_grid_pinpoints" in arguments:
            raise refusal
        made = super().preprocess(picture)
        assert isinstance(made, Mapping)
        config, [pixels] = self.info.get_hf_config(), made["pixel_values"]
        layout = layout_of(config, made["image_sizes"][0].tolist())
        side = config.vision_config.image_size
        if tuple(pixels.shape) != (layout.tiles, 3, side, side):
            raise refusal
        return made

    def joined(self, pixels: Sequence[Any]) -> dict[str, Any]:
        """Tiles of each image, and all sizes."""
        return {
            "pixel_values": [one["pixel_values"][0] for one in pixels],
            "image_sizes": torch.cat([one["image_sizes"] for one in pixels]),
        }

    def placeholders(
        self, modality: str, plan: Plan, item: MultiModalKwargsItem
    ) -> PromptUpdateInfo:
        """As many as there are patches and newlines."""
        layout = layout_of(self.info.get_hf_config(), item["image_sizes"].data.tolist())
        return [self._image_token_id] * layout.count(plan.pruner, plan.budget)

    def _layout(self, picture: Picture) -> TileLayout:
        """Of a picture that is there, or was sent before under the same name."""
        config = self.info.get_hf_config()
        if picture.image is None or isinstance(picture.image, Image.Image):
            if picture.size is None:
                raise VLLMValidationError(ABSENT, parameter="uuid")
            width, height = picture.size
            return layout_of(config, (height, width))
        made = self.made(picture)  # of an array, whose channels may come first or last
        assert isinstance(made, Mapping)
        return layout_of(config, made["image_sizes"][0].tolist())


@dataclass(frozen=True)
class Tiles:
    """A step's images: the tiles of each, base first, [tiles, 3, side, side]."""

    pixels: Sequence[Tensor]
    layouts: Sequence[TileLayout]

    @property
    def tokens(self) -> list[int]:
        """Those of the whole images."""
        return [layout.tokens for layout in self.layouts]

    @property
    def shapes(self) -> list[None]:
        """Base, tiles and newlines are no grid."""
        return [None] * len(self.layouts)

    @property
    def load(self) -> list[int]:
        """The tower has padding too, and no newlines."""
        return [layout.tiles * layout.base for layout in self.layouts]

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels[0].device

    def some(self, images: slice) -> "Tiles":
        """A run of them."""
        return Tiles(self.pixels[images], self.layouts[images])


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextProcessor, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class LiteLVLMLlavaNext(ClipGuided, LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT with pruning between the vision tower and the projector."""

    litelvlm_family = LlavaNextFamily()

    def litelvlm_media(self, fields: dict[str, Any]) -> Tiles:
        """Pixels are a tensor an image, or one where all have as many tiles."""
        layouts = [layout_of(self.config, size) for size in fields["image_sizes"].tolist()]
        return Tiles(list(fields["pixel_values"]), layouts)

    def litelvlm_whole(self, fields: dict[str, Any]) -> MultiModalEmbeddings:
        """By stock's own functions."""
        stock = self._parse_and_validate_image_input(**fields)
        whole: MultiModalEmbeddings = self._process_image_input(stock)
        return whole

    def litelvlm_feature_tokens(self, feature: MultiModalFeatureSpec) -> int:
        """By the picture's size."""
        assert feature.data is not None, "vLLM keeps what is on the CPU of a model with rows"
        return layout_of(self.config, feature.data["image_sizes"].data.tolist()).tokens

    def litelvlm_groups(
        self, batch: Batch, needs: frozenset[Signal], section: Section
    ) -> list[Group]:
        """One for each layout of images; the tower runs on all their tiles together."""
        media = batch.media
        assert isinstance(media, Tiles)
        counts = [layout.tiles for layout in media.layouts]
        owners = [image for image, count in enumerate(counts) for _ in range(count)]
        signals = self.litelvlm_signals(
            torch.cat(list(media.pixels)),
            [
                key + tile.to_bytes(2, "little")
                for key, count in zip(batch.keys, counts, strict=True)
                for tile in range(count)
            ],
            [batch.text_ids[image] for image in owners],
            [batch.word_ids[image] for image in owners],
            needs,
            section,
        )
        starts = [0, *accumulate(counts)]
        alike = defaultdict[TileLayout, list[int]](list)
        for image, layout in enumerate(media.layouts):
            alike[layout].append(image)
        return [
            Group(
                images,
                pooled(
                    signals.rows([t for i in images for t in range(starts[i], starts[i + 1])]),
                    layout,
                ),
            )
            for layout, images in alike.items()
        ]

    def litelvlm_select(self, batch: Batch) -> list[Selection]:
        """Methods choose patches; newlines follow from them."""
        media = batch.media
        assert isinstance(media, Tiles)
        asked = list(zip(batch.orders, media.layouts, strict=True))
        orders = [replace(one, budget=layout.patch_budget(one.budget)) for one, layout in asked]
        chosen = super().litelvlm_select(replace(batch, orders=orders))
        return [
            layout.with_newlines(selection, layout.newlines(order.budget))
            for selection, (order, layout) in zip(chosen, asked, strict=True)
        ]

    def litelvlm_tokens(self, selections: Sequence[Selection]) -> list[Tensor]:
        """Patches behind the projector, and newlines among them."""
        found = []
        for patches, selection in zip(super().litelvlm_tokens(selections), selections, strict=True):
            assert isinstance(selection, LinedSelection)
            newlines = self.image_newline.expand(len(selection.order) - len(patches), -1)
            both = torch.cat([patches, newlines.to(patches.dtype)])
            found.append(both.index_select(0, selection.order))
        return found
