"""LLaVA whose language model gets only the visual tokens that a request's text needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import isqrt
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.llava import (
    BaseLlavaProcessingInfo,
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_litelvlm.plugin.kept import Shape
from vllm_litelvlm.plugin.models.clip import ClipFamily, ClipTexts
from vllm_litelvlm.plugin.models.clip_guided import ClipGuided
from vllm_litelvlm.plugin.models.pruned import Batch, Group
from vllm_litelvlm.plugin.pixels import Picture
from vllm_litelvlm.plugin.plan import WorkOrder
from vllm_litelvlm.plugin.stopwatch import Section
from vllm_litelvlm.pruning.base import Signal, Signals
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.vision.frame import Frame, check_shows_squares
from vllm_litelvlm.vision.pixels import ByteProcessor, PixelValues
from vllm_litelvlm.vision.tower_guidance import patch_count
from vllm_litelvlm.vision.tower_kinds import KINDS, TowerKind, kind_of


class LlavaFamily(ClipFamily):
    """LLaVA-1.5 and those alike, with a tower of another kind: one square of one size an image."""

    name: ClassVar[str] = "LLaVA-1.5"

    def kinds(self) -> list[Traits]:
        """One a kind of vision tower."""
        return [_offered(kind) for kind in KINDS.values()]

    def traits(self, config: Any) -> Traits:
        """By the kind of its vision tower."""
        tower = config.vision_config
        side = Fraction(tower.image_size, tower.patch_size)
        return replace(_offered(kind_of(config)), tokens=patch_count(tower), side=side)


def _offered(kind: TowerKind) -> Traits:
    return Traits(kind.llava, signals=kind.guidance.available, has_cls=kind.guidance.has_cls)


class LlavaProcessor(ClipTexts, LlavaMultiModalProcessor):
    """LLaVA's processor, whose pixels travel as bytes where that changes none of them."""

    def shape(self, picture: Picture) -> tuple[int, int]:
        """The same of every picture."""
        assert self.traits.tokens is not None
        return 1, self.traits.tokens

    def padding(self, frame: Frame) -> tuple[float, ...] | None:
        """The mean colour, which the image processor takes for none.

        Raises OptionsError for a processor that does not show all of a square.
        """
        if frame == "crop":
            return None
        processor = self.info.get_hf_processor().image_processor
        check_shows_squares(processor)
        return tuple(processor.image_mean)

    @cached_property
    def bytes_of(self) -> ByteProcessor | None:
        """Makes the pixels that travel as bytes; None where they travel as numbers.

        They do where the image processor cannot be split, or the server gives it arguments.
        """
        if self.info.ctx.get_merged_mm_kwargs({}):
            return None
        # The worker asks while vLLM builds the model, in that one's dtype and on its device.
        with torch.device("cpu"), set_default_torch_dtype(torch.float32):
            return ByteProcessor.of(self.info.get_hf_processor().image_processor)

    def preprocess(self, picture: Picture) -> Tensor:
        """Bytes, uint8 [side, side, 3], or numbers, [1, 3, side, side]."""
        image = picture.image
        # Arrays may hold other numbers than bytes.
        if not picture.arguments and self.bytes_of is not None and isinstance(image, Image.Image):
            return self.bytes_of(image)
        made = super().preprocess(picture)
        assert isinstance(made, Mapping)
        numbers: Tensor = made["pixel_values"]
        # With their batch dimension: vLLM puts equal shapes into one tensor, and would take
        # bytes for such numbers.
        return numbers.to(self.info.ctx.model_config.dtype)

    def joined(self, pixels: Sequence[Any]) -> dict[str, Any]:
        """One field, with a tensor an image."""
        return {"pixel_values": pixels}


def build_processor(
    info: BaseLlavaProcessingInfo, dummy_inputs: LlavaDummyInputsBuilder[LlavaProcessingInfo]
) -> LlavaProcessor:
    """The factory that vLLM's registry calls. The configuration was checked at start."""
    assert isinstance(info, LlavaProcessingInfo)
    return LlavaProcessor(info, dummy_inputs)


@dataclass(frozen=True)
class Squares:
    """A step's images: bytes, uint8 [images, side, side, 3], or numbers of the tower's input."""

    pixels: Tensor
    patches: int

    @property
    def tokens(self) -> list[int]:
        """The same of every image."""
        return [self.patches] * len(self.pixels)

    @property
    def shapes(self) -> list[Shape]:
        """Squares."""
        return [(1, side := isqrt(self.patches), side)] * len(self.pixels)

    @property
    def load(self) -> list[int]:
        """The same as :attr:`tokens`."""
        return self.tokens

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    def some(self, images: slice) -> "Squares":
        """A run of them."""
        return Squares(self.pixels[images], self.patches)


@MULTIMODAL_REGISTRY.register_processor(
    build_processor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class LiteLVLMLlava(ClipGuided, LlavaForConditionalGeneration):
    """vLLM's LLaVA with pruning between the vision tower and the projector."""

    litelvlm_family = LlavaFamily()

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.litelvlm_patches = patch_count(self.config.vision_config)
        #: None where pixels do not come as bytes.
        self.litelvlm_pixels: PixelValues | None = None
        if self.litelvlm is not None:
            processor = MULTIMODAL_REGISTRY.create_processor(vllm_config.model_config)
            assert isinstance(processor, LlavaProcessor)
            if processor.bytes_of is not None:
                self.litelvlm_pixels = PixelValues(
                    processor.bytes_of, vllm_config.model_config.dtype
                )

    def litelvlm_media(self, fields: dict[str, Any]) -> Squares:
        """Bytes, or numbers where some of the step's images come as such.

        They come as bytes, uint8 [side, side, 3] each, or as numbers, [1, 3, side, side].
        """
        pixels = fields["pixel_values"]
        if not (isinstance(pixels, Tensor) and pixels.dtype == torch.uint8):
            each = (one if one.ndim == 4 else one[None] for one in pixels)
            pixels = torch.cat([self.litelvlm_numbers(one) for one in each])
        return Squares(pixels, self.litelvlm_patches)

    def litelvlm_numbers(self, pixels: Tensor) -> Tensor:
        """What the tower takes, [images, 3, side, side], of bytes or of numbers."""
        if pixels.dtype != torch.uint8:
            return pixels
        assert self.litelvlm_pixels is not None
        values: Tensor = self.litelvlm_pixels(pixels)
        return values

    def litelvlm_whole(self, fields: dict[str, Any]) -> MultiModalEmbeddings:
        """By stock's own functions."""
        numbers = self.litelvlm_numbers(self.litelvlm_media(fields).pixels)
        stock = self._parse_and_validate_image_input(pixel_values=numbers)
        whole: MultiModalEmbeddings = self._process_image_input(stock)
        return whole

    def litelvlm_feature_tokens(self, feature: MultiModalFeatureSpec) -> int:
        """The same of every picture."""
        return self.litelvlm_patches

    def litelvlm_keeps(self, keys: Sequence[bytes]) -> bool:
        """Whether they are in the feature cache."""
        assert self.litelvlm is not None
        return self.litelvlm.keeps_features(keys)

    def litelvlm_groups(
        self, batch: Batch, needs: frozenset[Signal], section: Section
    ) -> list[Group]:
        """All images of a batch are one group."""
        assert isinstance(batch.media, Squares)
        signals = self.litelvlm_signals(
            batch.media.pixels, batch.keys, batch.text_ids, batch.word_ids, needs, section
        )
        return [Group(range(len(batch.orders)), signals)]

    def litelvlm_bases(
        self, signals: Signals, keys: Sequence[bytes], orders: Sequence[WorkOrder]
    ) -> list[Tensor | None]:
        """By guidance, which remembers them."""
        assert self.litelvlm is not None
        return self.litelvlm.bases(signals, keys, orders)
