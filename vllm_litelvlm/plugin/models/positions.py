"""The part of a model class that lets kept tokens keep their own positions."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sequence import IntermediateTensors

from vllm_litelvlm.plugin.family import Family, refuse_drafts_and_stages
from vllm_litelvlm.plugin.models.pruned import Batch
from vllm_litelvlm.plugin.parcel import Parcel
from vllm_litelvlm.plugin.positions import (
    ROWS,
    ImageSpan,
    continuation,
    place_tokens,
    prompt_positions,
    split_offsets,
    with_offsets,
)
from vllm_litelvlm.plugin.processor import PARCELS_FIELD
from vllm_litelvlm.pruning.base import Pruner, Selection
from vllm_litelvlm.pruning.order import Layer


class OriginalPositions:
    """Mixed into a model class before vLLM's own: its ``SupportsMRoPE`` and more.

    vLLM asks for any of this only where the server's ``positions`` is ``"original"``
    (:mod:`vllm_litelvlm.plugin.config`); requests then have either kind.
    """

    supports_mrope: ClassVar = True
    supports_multimodal_pruning: ClassVar = True
    supported_video_pruning_methods: ClassVar = ("evs",)
    #: Of the model's class.
    litelvlm_family: ClassVar[Family]
    config: Any
    #: Of the model's configuration.
    litelvlm_image_token: int
    #: The last position that the rotary embedding has.
    litelvlm_last_position: int

    @abstractmethod
    def litelvlm_feature_tokens(self, feature: MultiModalFeatureSpec) -> int:
        """Visual tokens of the picture of an item in a prompt, before pruning."""

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Positions of a prompt, with what follows an image where it stands unpruned."""
        return prompt_positions(len(input_tokens), self._spans(mm_features))

    def _spans(self, features: Sequence[MultiModalFeatureSpec]) -> list[ImageSpan]:
        """Where every image, or layer of one, stands."""
        features = sorted(features, key=lambda one: one.mm_position.offset)
        parcels = [Parcel.unpack(_parcel(one)) for one in features]
        orders = [parcel.order for parcel in parcels]
        keys = [parcel.key for parcel in parcels]
        places = [one.mm_position for one in features]
        below = bases_below([order.layer for order in orders], keys, places)
        spans = []
        for feature, order, base in zip(features, orders, below, strict=True):
            place = feature.mm_position
            positions = place.length
            if order.original:
                whole = self._places(order.pruner, self.litelvlm_feature_tokens(feature))
                positions = len(whole) if base is None else 0
            within = base if order.original else None
            spans.append(ImageSpan(place.offset, place.length, positions, within))
        return spans

    def _places(self, pruner: Pruner, tokens: int) -> range:
        """All that a method's tokens of an image of so many tokens may take."""
        return self.litelvlm_family.traits(self.config).places(pruner, tokens)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Take the offsets off the tokens of this step, and place the tokens by them."""
        if not multimodal_embeddings:
            return [], mrope_positions, continuation(mrope_positions)
        tokens, offsets = zip(*map(split_offsets, multimodal_embeddings), strict=True)
        device = mrope_positions.device
        is_image = torch.as_tensor(input_ids, device=device) == self.litelvlm_image_token
        known = torch.cat(offsets).to(device)
        rows = place_tokens(mrope_positions, is_image, known, num_computed_tokens)
        return tokens, rows, continuation(rows)

    def litelvlm_placed(
        self,
        embeddings: Sequence[Tensor] | Tensor,
        batch: Batch,
        selections: Sequence[Selection] | None,
    ) -> list[Tensor]:
        """Every image's tokens with their offsets behind the image's beginning."""
        found = []
        for number, (tokens, order) in enumerate(zip(embeddings, batch.orders, strict=True)):
            if order.original and selections is not None:
                start = self._places(order.pruner, batch.media.tokens[number]).start
                offsets = selections[number].indices - start
            else:
                offsets = torch.arange(len(tokens), device=tokens.device)
            found.append(with_offsets(tokens, offsets))
        return found

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """The language model reads the first row.

        Text that is generated behind the last position of the rotary embedding stays there. That
        is written in place, since a captured graph reads these very bytes.
        """
        if positions.dim() == 2:
            positions = positions[0].clamp_(max=self.litelvlm_last_position)
        stock: Any = super()
        return stock.forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)


def _parcel(feature: MultiModalFeatureSpec) -> Tensor:
    assert feature.data is not None, "vLLM keeps what is on the CPU of a model with rows"
    data: Tensor = feature.data[PARCELS_FIELD].data
    return data


def bases_below(
    layers: Sequence[Layer], keys: Sequence[bytes], places: Sequence[PlaceholderRange]
) -> list[int | None]:
    """The number of the base below each focus; None for what is no focus.

    A focus lies on a base of its own picture. Where a prompt has a picture several times, those of
    a run of adjacent focuses lie on the last so many, in order.
    """
    below: list[int | None] = [None] * len(layers)
    bases: dict[bytes, list[int]] = defaultdict(list)
    run: dict[bytes, list[int]] = defaultdict(list)

    def end_run() -> None:
        for key, focuses in run.items():
            for focus, base in zip(focuses, bases[key][-len(focuses) :], strict=True):
                below[focus] = base
        run.clear()

    end = -1
    for number, (layer, key, place) in enumerate(zip(layers, keys, places, strict=True)):
        if layer is not Layer.FOCUS or place.offset != end:
            end_run()
        if layer is Layer.BASE:
            bases[key].append(number)
        if layer is Layer.FOCUS:
            run[key].append(number)
        end = place.offset + place.length
    end_run()
    return below


def install_rows(vllm_config: VllmConfig) -> None:
    """Have vLLM keep rows of positions a request, and hand the model pruned tokens to place by.

    Its switch for the second half is named for videos, of which these models have none. The
    language model's own embedding is not told of the rows.
    """
    refuse_drafts_and_stages(vllm_config)
    model_config = vllm_config.model_config
    model_config.hf_config.mrope_section = [1] * ROWS
    assert model_config.multimodal_config is not None
    model_config.multimodal_config.video_pruning_rate = 0.5
