"""The multimodal processor: has every image and video of a request pruned as it asks."""

import dataclasses
import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, compress
from typing import Any, NamedTuple

import torch
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalHashes, MultiModalInput
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import (
    MultiModalFieldConfig,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
)
from vllm.multimodal.parse import (
    DictEmbeddingItems,
    EmbeddingItems,
    MultiModalDataItems,
    ProcessorBatchItems,
)
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.processor import PromptUpdateInfo
from vllm.renderers.hf import resolve_chat_template

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import OPTIONS_KEY
from vllm_litelvlm.plugin import metrics
from vllm_litelvlm.plugin.asked import VARIANT_KEY
from vllm_litelvlm.plugin.config import (
    GuidanceConfig,
    guidance_config,
    position_limit,
    settle_options,
)
from vllm_litelvlm.plugin.conversation import CONVERSATION_KEY
from vllm_litelvlm.plugin.encoded import look_in
from vllm_litelvlm.plugin.instruction import InstructionReader
from vllm_litelvlm.plugin.layers import Layout, one_layer
from vllm_litelvlm.plugin.parcel import pack
from vllm_litelvlm.plugin.pixels import Picture, PixelCache, Pixels
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.planner import Planner
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.plugin.refusal import refusals
from vllm_litelvlm.plugin.served import family_of
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.pruning.registry import offered_methods
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.vision.frame import Frame
from vllm_litelvlm.vision.words import word_ids

#: Of an image's :class:`~vllm_litelvlm.plugin.parcel.Parcel`.
PARCELS_FIELD = "litelvlm_parcels"
#: The field of parcels by what they are of.
PARCELS = {"image": PARCELS_FIELD, "video": "litelvlm_video_parcels"}
#: Tokens that are kept in vLLM's memory profile: of the largest images of some models, methods that
#: go step by step would take minutes for more.
_MOST_PROFILED = 4096
#: What is said of an item that nobody has.
ABSENT = (
    "An image was sent by its uuid alone, and its data is not provided and not in any cache; send "
    "the image itself."
)


class Said(NamedTuple):
    """Of an item: its plan in its JSON form, and what vLLM's caches know it by."""

    plan: str
    name: str


class PruningProcessor(BaseMultiModalProcessor[Any]):
    """Mixed into a family's processor before vLLM's own: as many placeholders as plans keep.

    What vLLM takes for the images of a request are here the items of its layout: an image, a layer
    of one, or a video. Layers share a :class:`~vllm_litelvlm.plugin.pixels.Picture`, and each item
    has a plan, which for a video says what is kept of every frame.
    """

    #: The server's ``--chat-template``, which is told before the first request.
    chat_template: str | None = None

    # What a family has of its own.

    @abstractmethod
    def shape(self, picture: Picture) -> tuple[int, int]:
        """How many frames a picture has, 1 of an image, and the visual tokens of each."""

    @abstractmethod
    def tokenize_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids of guiding texts, int32 [texts, length], as guidance in the worker reads them.

        What stands behind the end of a shorter text is the guidance's own convention.
        """

    @abstractmethod
    def longest_texts(self, count: int) -> tuple[str, ...]:
        """So many different texts, each as long as guidance reads, for vLLM's memory profile."""

    def positions_of(self, plan: Plan, picture: Picture) -> int:
        """How many positions of the language model a picture takes up."""
        _, tokens = self.shape(picture)
        return len(self.traits.places(plan.pruner, tokens)) if plan.original else plan.count

    def padding(self, frame: Frame) -> tuple[float, ...] | None:
        """The colour that pictures are padded to squares with, if they are; RGB from 0 to 1."""
        return None

    def preprocess(self, picture: Picture) -> Pixels:
        """What the vision tower gets of a picture: by default, what stock vLLM makes of it."""
        alone = _items({picture.modality: [picture.image]})
        made = super()._apply_hf_processor_main(alone, picture.arguments)
        fields = super()._get_mm_fields_config(made, picture.arguments)
        return {name: made[name] for name in fields if name in made}

    def joined(self, pixels: Sequence[Any]) -> dict[str, Any]:
        """Pixels of some pictures as vLLM's fields: by default, one behind the other."""
        fields: dict[str, Any] = {}
        for name, first in pixels[0].items():
            parts = [one[name] for one in pixels]
            tensors = isinstance(first, torch.Tensor)
            fields[name] = torch.cat(parts) if tensors else [*chain.from_iterable(parts)]
        return fields

    def placeholders(
        self, modality: str, plan: Plan, item: MultiModalKwargsItem
    ) -> PromptUpdateInfo:
        """What a picture's placeholder becomes in the prompt; ``item`` has its fields."""
        return [self._image_token_id] * plan.count

    def targets(self) -> dict[str, list[int]]:
        """The tokens that stand for an item in a prompt, by its modality."""
        return {"image": [self._image_token_id]}

    # vLLM builds a processor for every chat to ask it one thing, so each part waits to be used.

    @cached_property
    def settings(self) -> GuidanceConfig:
        """What was settled at start."""
        return guidance_config(self.info.get_hf_config())

    @cached_property
    def traits(self) -> Traits:
        """What the model offers."""
        return family_of(self.info.ctx.model_config).traits(self.info.get_hf_config())

    @cached_property
    def _pixels(self) -> PixelCache:
        max_bytes = int(self.settings.server.pixel_cache_gb * 2**30)
        cache = PixelCache(max_bytes, self._hash_algorithm)
        look_in(cache)
        return cache

    @cached_property
    def _image_token_id(self) -> int:
        family = family_of(self.info.ctx.model_config)
        return family.image_token(self.info.get_hf_config())

    @property
    def _hash_algorithm(self) -> str:
        return str(self.info.ctx.get_mm_config().mm_hasher_algorithm)

    @cached_property
    def _planner(self) -> Planner:
        tokenizer, image_token = self.info.get_tokenizer(), self._image_token_id

        def reader() -> InstructionReader:
            """By the server's template or the model's."""
            own: str | None = resolve_chat_template(
                tokenizer, None, None, model_config=self.info.ctx.model_config
            )
            templates = [*filter(None, [self.chat_template, own])]
            return InstructionReader(tokenizer, image_token, templates)

        return Planner(self.traits, self.settings, image_token, tokenizer, reader)

    def clear_pixels(self) -> None:
        """Forget preprocessed images."""
        self._pixels.clear()

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """Lay the request out as its options and its conversation say, then process as usual.

        Raises VLLMValidationError (HTTP 400) for options that are not allowed, and for image
        embeddings, which have not gone through the vision tower that the scores come from.
        """
        others = dict(inputs.hf_processor_mm_kwargs)
        conversation = others.pop(CONVERSATION_KEY, None)
        asked = others.pop(OPTIONS_KEY, None)
        server = self.settings.server.of(others.pop(VARIANT_KEY, None))
        if isinstance(asked, Plan):  # vLLM's memory profile
            pictures = self._pictures(inputs, others, "crop")
            shares = [min(asked.budget, self.shape(picture)[1]) for picture in pictures]
            plans = [dataclasses.replace(asked, budget=share) for share in shares]
            layout = one_layer(inputs.prompt, plans)
        else:
            with refusals():
                options, focus = settle_options(asked, server, self.traits)
                pictures = self._pictures(inputs, others, options.frame)
                plans = [
                    self._planner.plan(options, server, self.shape(picture)[1], picture.window)
                    for picture in pictures
                ]
                self.check_places(inputs.prompt, plans, pictures)
                layout = self._planner.lay_out(
                    options, focus, server, inputs.prompt, plans, conversation
                )
            self._count(layout, plans, pictures)
        chosen: dict[str, list[Picture]] = {}
        said: dict[str, list[Said]] = {}
        for item in layout.items:
            picture, plan = pictures[item.image], item.plan.to_json()
            name = self._name(inputs, picture, plan)
            chosen.setdefault(picture.modality, []).append(picture)
            said.setdefault(picture.modality, []).append(Said(plan, name))
        return super().apply(
            dataclasses.replace(
                inputs,
                prompt=layout.prompt,
                mm_data_items=_items(
                    {
                        modality: [None if one.is_missing else one for one in some]
                        for modality, some in chosen.items()
                    }
                ),
                mm_uuid_items={
                    modality: [one.identity for one in some] for modality, some in chosen.items()
                },
                hf_processor_mm_kwargs={**others, OPTIONS_KEY: said},
            ),
            timing_ctx,
        )

    def _pictures(
        self, inputs: ProcessorInputs, others: Mapping[str, object], frame: Frame
    ) -> list[Picture]:
        """The request's images, then its videos."""
        padding = self.padding(frame)
        grid = self.traits.side or math.isqrt(self.traits.tokens or 1)
        found = []
        for modality in filter(inputs.mm_data_items.__contains__, PARCELS):
            items = inputs.mm_data_items[modality]
            if isinstance(items, EmbeddingItems | DictEmbeddingItems):
                raise VLLMValidationError(
                    f"litelvlm prunes by what the vision tower saw, so {modality} embeddings "
                    f"cannot be given directly; send the {modality} itself, or serve without "
                    "--plugin litelvlm.",
                    parameter=f"{modality}_embeds",
                )
            names = (inputs.mm_uuid_items or {}).get(modality) or [None] * len(items)
            read = json.dumps((inputs.media_io_kwargs or {}).get(modality) or {}, default=str)
            for number, (given, name) in enumerate(
                zip(items.get_all_items_for_hash(), names, strict=True)
            ):
                own = _of_one(others, number) if modality == "video" else dict(others)
                digest = partial(MultiModalHasher.hash_kwargs, self._hash_algorithm, **own)
                # A name stands for what was read in one way.
                full = None if name is None else f"{modality} {read} {name}"
                frames = items.get(number) if modality == "video" else None
                found.append(
                    Picture(given, full, digest, self._pixels, padding, grid, modality, own, frames)
                )
        return found

    def check_places(
        self, prompt: Sequence[int], plans: Sequence[Plan], pictures: Sequence[Picture]
    ) -> None:
        """Refuse a prompt that fits only because it is pruned: its last positions do not exist.

        Raises OptionsError.
        """
        if not any(plan.original for plan in plans):
            return
        limit = position_limit(self.info.ctx.model_config)
        positions = len(prompt) - len(plans) + sum(map(self.positions_of, plans, pictures))
        if positions > limit:
            raise OptionsError(
                f"litelvlm option 'positions' is \"original\", by which the prompt's {len(plans)} "
                f"images and text take up {positions} positions; allowed: {limit}, as many as the "
                'model has. Send fewer images, or ask for "compact".'
            )

    def _count(self, layout: Layout, plans: Sequence[Plan], pictures: Sequence[Picture]) -> None:
        """Tell Prometheus, picture by picture."""
        kept = [0] * len(plans)
        for item in layout.items:
            kept[item.image] += item.plan.count
        for plan, picture, tokens in zip(plans, pictures, kept, strict=True):
            frames, whole = self.shape(picture)
            metrics.count_images(
                plan.method, images=1, tokens_in=frames * whole, tokens_kept=frames * tokens
            )

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """The costliest request that the server allows, for vLLM's memory profile.

        As many tokens as a request may ask for, by every method that requests may name, scored
        with the largest number of full-length texts.
        """
        inputs = super().get_dummy_inputs(*args, **kwargs)
        server = self.settings.server
        methods = sorted({options.method for options in server.sets.values()})
        if server.request_options:
            methods = [*(server.methods or offered_methods(self.traits))]
        tokens = [self.shape(one)[1] for one in self._pictures(inputs, {}, "crop")]
        budget = min(server.highest_budget(max(tokens, default=1)), _MOST_PROFILED)
        parameters = {"methods": methods, "parameters": self.traits.parameters}
        plan = Plan(Profile.name, parameters, budget, self.longest_texts(server.max_texts))
        return dataclasses.replace(inputs, hf_processor_mm_kwargs={OPTIONS_KEY: plan})

    def _name(self, inputs: ProcessorInputs, picture: Picture, plan: str) -> str:
        """An item's identity: its picture's, together with its plan."""
        name: str = MultiModalHasher.hash_kwargs(
            self._hash_algorithm,
            model_id=self.info.model_id,
            media_io_kwargs=(inputs.media_io_kwargs or {}).get(picture.modality) or {},
            modality=picture.modality,
            item=picture.identity,
            plan=plan,
        )
        return name

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> MultiModalHashes:
        """Every item's identity."""
        given = inputs.hf_processor_mm_kwargs
        return {
            modality: [one.name for one in _said(given, modality)]
            for modality in inputs.mm_uuid_items or {}
        }

    def _get_cache_missing_items(
        self, cache: Any, mm_data_items: MultiModalDataItems, mm_hashes: MultiModalHashes
    ) -> tuple[dict[str, list[bool]], MultiModalDataItems]:
        """The items that vLLM's cache lacks."""
        there = {modality: cache.is_cached(hashes) for modality, hashes in mm_hashes.items()}
        missing = {
            modality: _lacking(items.get_all(), there[modality])
            for modality, items in mm_data_items.items()
        }
        return there, _items({modality: items for modality, items in missing.items() if items})

    def _get_cache_missing_processor_kwargs(
        self, inputs: ProcessorInputs, mm_is_cached: Mapping[str, list[bool]]
    ) -> Mapping[str, object]:
        """The options, with the plans of the items that vLLM's cache lacks."""
        given = inputs.hf_processor_mm_kwargs
        missing = {
            modality: _lacking(_said(given, modality), there)
            for modality, there in mm_is_cached.items()
        }
        return {**given, OPTIONS_KEY: missing}

    def _apply_hf_processor_main(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        """The fields of a request's new items: pixels, and what the worker is to do with them."""
        fields: dict[str, Any] = {}
        for modality, items in mm_items.items():
            pictures = items.get_all()
            if None in pictures:
                raise VLLMValidationError(ABSENT, parameter="uuid")
            said = _said(hf_kwargs, modality)
            plans = [Plan.from_json(one.plan) for one in said]
            fields |= self.joined(self._pixels.get(pictures, self.made))
            fields[PARCELS[modality]] = [
                pack(plan, picture.key, *ids, one.name)
                for plan, picture, ids, one in zip(
                    plans, pictures, self._ids(plans), said, strict=True
                )
            ]
        return BatchFeature(fields)

    def made(self, picture: Picture) -> Pixels:
        """A picture's pixels, preprocessed once a request."""
        if picture.made is None:
            picture.made = self.preprocess(picture)
        return picture.made

    def _ids(self, plans: Sequence[Plan]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Token ids of every plan's texts, int32 [texts, length], and of their words, [words]."""
        none = torch.zeros(0, 1, dtype=torch.int32)
        no_words = torch.zeros(0, dtype=torch.int32)
        different = {plan.texts for plan in plans}
        ids = {texts: self.tokenize_texts(texts) if texts else none for texts in different}
        by_word = [Signal.WORD_COSINE in plan.pruner.needs for plan in plans]
        words = {
            plan.texts: word_ids(self.info.get_tokenizer(), plan.texts)
            for plan in compress(plans, by_word)
        }
        return [
            (ids[plan.texts], words[plan.texts] if reads else no_words)
            for plan, reads in zip(plans, by_word, strict=True)
        ]

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        others = {key: one for key, one in hf_processor_mm_kwargs.items() if key != OPTIONS_KEY}
        parcels = {
            field: MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for modality, field in PARCELS.items()
        }
        return {**super()._get_mm_fields_config(hf_inputs, others), **parcels}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        def replacement(number: int, modality: str, said: Sequence[Said]) -> PromptUpdateInfo:
            fields = out_mm_kwargs[modality][number]
            return self.placeholders(modality, Plan.from_json(said[number].plan), fields)

        return [
            PromptReplacement(
                modality=modality,
                target=target,
                replacement=partial(
                    replacement,
                    modality=modality,
                    said=_said(hf_processor_mm_kwargs, modality),
                ),
            )
            for modality, target in self.targets().items()
        ]


def _items(pictures: Mapping[str, Sequence[Any]]) -> MultiModalDataItems:
    """What vLLM takes for a request's data."""
    return MultiModalDataItems(
        {modality: ProcessorBatchItems(some, modality) for modality, some in pictures.items()}
    )


def _said(hf_processor_mm_kwargs: Mapping[str, object], modality: str) -> list[Said]:
    """Of the items."""
    said = hf_processor_mm_kwargs[OPTIONS_KEY]
    assert isinstance(said, Mapping)
    found: list[Said] = said.get(modality, [])
    return found


def _lacking(items: Sequence[Any], there: Sequence[bool]) -> list[Any]:
    return [item for item, is_there in zip(items, there, strict=True) if not is_there]


def _of_one(others: Mapping[str, object], number: int) -> dict[str, object]:
    """A request's arguments as one of its videos has them: some name a number a video."""
    own = dict(others)
    for name in ("fps", "num_frames"):
        given = own.get(name)
        if isinstance(given, list) and number < len(given):
            own[name] = given[number]
    nested = own.get("videos_kwargs")
    if isinstance(nested, Mapping):
        own["videos_kwargs"] = _of_one(nested, number)
    return own
