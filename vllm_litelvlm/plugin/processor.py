"""The multimodal processor: decides, per request, which pruning each image gets."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalHashes, MultiModalInput
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)
from vllm.multimodal.processing.context import TimingContext
from vllm.renderers.hf import resolve_chat_template

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import OPTIONS_KEY, PruningOptions, ServerOptions
from vllm_litelvlm.plugin import metrics
from vllm_litelvlm.plugin.asked import VARIANT_KEY
from vllm_litelvlm.plugin.config import (
    GuidanceConfig,
    guidance_config,
    position_limit,
    settle_options,
)
from vllm_litelvlm.plugin.conversation import CONVERSATION_KEY, Conversation
from vllm_litelvlm.plugin.encoded import look_in
from vllm_litelvlm.plugin.instruction import InstructionReader
from vllm_litelvlm.plugin.layers import Layout, calls, guiding_texts, one_layer, two_layers
from vllm_litelvlm.plugin.parcel import pack
from vllm_litelvlm.plugin.pixels import Picture, PixelCache, Pixels
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.plugin.refusal import refusals
from vllm_litelvlm.plugin.served import family_of
from vllm_litelvlm.plugin.turns import Turn
from vllm_litelvlm.pruning.registry import (
    check_texts,
    offered_methods,
    pruner_class,
    settle_focus,
)
from vllm_litelvlm.pruning.traits import Traits
from vllm_litelvlm.vision.frame import Frame

#: Of an item's :class:`~vllm_litelvlm.plugin.parcel.Parcel`.
PARCELS_FIELD = "litelvlm_parcels"
#: Fields of parcels, whatever they are of.
PARCELS = (PARCELS_FIELD,)


class PruningProcessor(BaseMultiModalProcessor[Any]):
    """Mixed into a family's processor before vLLM's own: as many placeholders as plans keep.

    What vLLM takes for the images of a request are here the items of its layout: an image, or a
    layer of one. They share a :class:`~vllm_litelvlm.plugin.pixels.Picture`, and each has a plan.
    """

    #: The server's ``--chat-template``, which is told before the first request.
    chat_template: str | None = None

    # What a family has of its own.

    @abstractmethod
    def count_tokens(self, picture: Picture, others: Mapping[str, object]) -> int:
        """How many visual tokens a picture comes to; ``others``: the request's own arguments."""

    @abstractmethod
    def tokenize_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids of guiding texts, int32 [texts, length], for the guidance in the worker.

        Shorter texts are padded on the right by their last token.
        """

    @abstractmethod
    def longest_texts(self, count: int) -> tuple[str, ...]:
        """So many different texts, each as long as guidance reads, for vLLM's memory profile."""

    def positions_of(self, plan: Plan, picture: Picture, others: Mapping[str, object]) -> int:
        """How many positions of the language model an image takes up."""
        tokens = self.count_tokens(picture, others)
        return len(plan.pruner.places(tokens)) if plan.original else plan.count

    def padding(self, frame: Frame) -> tuple[float, ...] | None:
        """The colour that pictures are padded to squares with, if they are; RGB from 0 to 1."""
        return None

    def preprocess(self, picture: Picture, others: Mapping[str, object]) -> Pixels:
        """What the vision tower gets of a picture: by default, what stock vLLM makes of it."""
        made = super()._apply_hf_processor_main(_items([picture.image]), others)
        fields = super()._get_mm_fields_config(made, others)
        return {name: made[name] for name in fields if name in made}

    def joined(self, pixels: Sequence[Any]) -> dict[str, Any]:
        """The images' pixels as vLLM's fields: by default, one behind the other."""
        return {name: torch.cat([one[name] for one in pixels]) for name in pixels[0]}

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
    def _reader(self) -> InstructionReader:
        """For prompts that the caller has rendered, by the server's template or the model's."""
        context = self.info.ctx
        own: str | None = resolve_chat_template(
            context.get_tokenizer(), None, None, model_config=context.model_config
        )
        templates = [*filter(None, [self.chat_template, own])]
        return InstructionReader(self.info.get_tokenizer(), self._image_token_id, templates)

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
            layout = one_layer(inputs.prompt, [asked] * len(pictures))
        else:
            with refusals():
                options, focus = settle_options(asked, server, self.traits)
                pictures = self._pictures(inputs, others, options.frame)
                plans = [self._plan(options, server, picture, others) for picture in pictures]
                self._check_places(inputs.prompt, plans, pictures, others)
                layout = self._lay_out(options, focus, server, inputs.prompt, plans, conversation)
                self._count(layout, plans, pictures, others)
        chosen = [pictures[item.image] for item in layout.items]
        return super().apply(
            dataclasses.replace(
                inputs,
                prompt=layout.prompt,
                mm_data_items=_items([None if one.is_missing else one for one in chosen]),
                mm_uuid_items={"image": [one.identity for one in chosen]},
                hf_processor_mm_kwargs={
                    **others,
                    OPTIONS_KEY: [item.plan.to_json() for item in layout.items],
                },
            ),
            timing_ctx,
        )

    def _pictures(
        self, inputs: ProcessorInputs, others: Mapping[str, object], frame: Frame
    ) -> list[Picture]:
        """The request's images."""
        images = inputs.mm_data_items.get("image")
        if images is None:
            return []
        if not isinstance(images, ImageProcessorItems):
            raise VLLMValidationError(
                "litelvlm prunes by what the vision tower saw, so image embeddings cannot be given "
                "directly; send the image itself, or serve without --plugin litelvlm.",
                parameter="image_embeds",
            )
        digest = partial(MultiModalHasher.hash_kwargs, self._hash_algorithm, **others)
        names = (inputs.mm_uuid_items or {}).get("image") or [None] * len(images)
        padding = self.padding(frame)
        grid = math.isqrt(self.traits.tokens or 1)
        return [
            Picture(image, name, digest, self._pixels, padding, grid)
            for image, name in zip(images.get_all_items_for_hash(), names, strict=True)
        ]

    def _plan(
        self,
        options: PruningOptions,
        server: ServerOptions,
        picture: Picture,
        others: Mapping[str, object],
    ) -> Plan:
        """What an image gets by a request's options; texts are still to come."""
        tokens = self.count_tokens(picture, others)
        if self.traits.tokens is None:
            budget = server.fitted_budget(options, tokens)
            options = options.model_copy(update={"budget": budget})
        return Plan.decide(options, tokens, picture.window, self.traits)

    def _lay_out(
        self,
        options: PruningOptions,
        focus: int,
        server: ServerOptions,
        prompt: list[int],
        plans: Sequence[Plan],
        conversation: Conversation | None,
    ) -> Layout:
        """Where what is kept of each image stands in the prompt, and why it is kept.

        ``focus``: of an image that is shown whole. ``plans``: one an image. Raises OptionsError.
        """
        if focus and prompt.count(self._image_token_id) == len(plans):
            assert self.traits.tokens is not None
            return two_layers(
                prompt,
                self._image_token_id,
                plans,
                list(calls(self._turns(prompt, conversation), options, server.max_texts)),
                focuses=[_focus(options, plan) for plan in plans],
                patches=self.traits.tokens,
                block=self.settings.block,
            )
        guided = any(map(_reads_text, plans))
        texts = self._texts(options, prompt, conversation) if guided else ()
        return one_layer(prompt, [_guided(plan, texts) for plan in plans])

    def _count(
        self,
        layout: Layout,
        plans: Sequence[Plan],
        pictures: Sequence[Picture],
        others: Mapping[str, object],
    ) -> None:
        """Tell Prometheus, image by image."""
        kept = [0] * len(plans)
        for item in layout.items:
            kept[item.image] += item.plan.count
        for plan, picture, tokens in zip(plans, pictures, kept, strict=True):
            whole = self.count_tokens(picture, others)
            metrics.count_images(plan.method, images=1, tokens_in=whole, tokens_kept=tokens)

    def _texts(
        self,
        options: PruningOptions,
        prompt: Sequence[int],
        conversation: Conversation | None,
    ) -> tuple[str, ...]:
        """What guides a method that keeps all of its tokens in one layer."""
        texts = options.texts
        if texts is None:
            said = conversation.texts() if conversation else self._reader.texts(prompt)
            texts = guiding_texts(said, options.guide, self.settings.server.max_texts)
        return texts

    def _turns(self, prompt: Sequence[int], conversation: Conversation | None) -> list[Turn]:
        tokenizer = self.info.get_tokenizer()
        turns = (
            conversation.turns(prompt, tokenizer, self._image_token_id) if conversation else None
        )
        return self._reader.turns(prompt) if turns is None else turns

    def _check_places(
        self,
        prompt: Sequence[int],
        plans: Sequence[Plan],
        pictures: Sequence[Picture],
        others: Mapping[str, object],
    ) -> None:
        """Refuse a prompt that fits only because it is pruned: its last positions do not exist."""
        if not any(plan.original for plan in plans):
            return
        limit = position_limit(self.info.ctx.model_config)
        positions = (
            len(prompt)
            - len(plans)
            + sum(
                self.positions_of(plan, picture, others)
                for plan, picture in zip(plans, pictures, strict=True)
            )
        )
        if positions > limit:
            raise OptionsError(
                f"litelvlm option 'positions' is \"original\", by which the prompt's {len(plans)} "
                f"images and text take up {positions} positions; allowed: {limit}, as many as the "
                'model has. Send fewer images, or ask for "compact".'
            )

    def get_dummy_inputs(self, *args: object, **kwargs: object) -> ProcessorInputs:
        """The costliest request that the server allows, for vLLM's memory profile.

        As many tokens as a request may ask for, by every method that requests may name, scored
        with the largest number of full-length texts.
        """
        inputs = super().get_dummy_inputs(*args, **kwargs)
        server = self.settings.server
        methods = sorted({options.method for options in server.sets.values()})
        if server.request_options:
            methods = [*(server.methods or offered_methods(self.traits))]
        most = max(
            (self.count_tokens(one, {}) for one in self._pictures(inputs, {}, "crop")), default=1
        )
        texts = self.longest_texts(server.max_texts)
        plan = Plan(Profile.name, {"methods": methods}, server.highest_budget(most), texts)
        return dataclasses.replace(inputs, hf_processor_mm_kwargs={OPTIONS_KEY: plan})

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> MultiModalHashes:
        """Every item's identity: its picture's, together with its plan."""
        assert inputs.mm_uuid_items is not None
        digest = partial(
            MultiModalHasher.hash_kwargs,
            self._hash_algorithm,
            model_id=self.info.model_id,
            media_io_kwargs=inputs.media_io_kwargs.get("image") or {},
        )
        plans = _plans(inputs.hf_processor_mm_kwargs)
        names = inputs.mm_uuid_items["image"]
        return {
            "image": [
                digest(image=name, plan=plan) for name, plan in zip(names, plans, strict=True)
            ]
        }

    def _get_cache_missing_processor_kwargs(
        self, inputs: ProcessorInputs, mm_is_cached: Mapping[str, list[bool]]
    ) -> Mapping[str, object]:
        """The options, with the plans of the items that vLLM's cache lacks."""
        plans = _plans(inputs.hf_processor_mm_kwargs)
        cached = mm_is_cached["image"]
        missing = [plan for plan, there in zip(plans, cached, strict=True) if not there]
        return {**inputs.hf_processor_mm_kwargs, OPTIONS_KEY: missing}

    def _apply_hf_processor_main(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        """The fields of a request's new items: pixels, and what the worker is to do with them."""
        if "image" not in mm_items:
            return BatchFeature()
        pictures = mm_items["image"].get_all()
        if None in pictures:  # where vLLM has no cache to look in
            raise VLLMValidationError(
                "An image was sent by its uuid alone, and its data is not provided and not in any "
                "cache; send the image itself.",
                parameter="uuid",
            )
        plans = [Plan.from_json(plan) for plan in _plans(hf_kwargs)]
        others = _without_ours(hf_kwargs)
        pixels = self._pixels.get(pictures, lambda picture: self.preprocess(picture, others))
        parcels = [
            pack(plan, picture.key, ids)
            for plan, picture, ids in zip(plans, pictures, self._text_ids(plans), strict=True)
        ]
        return BatchFeature({**self.joined(pixels), PARCELS_FIELD: parcels})

    def _text_ids(self, plans: Sequence[Plan]) -> list[torch.Tensor]:
        """Token ids of every plan's texts, int32 [texts, length] each."""
        none = torch.zeros(0, 1, dtype=torch.int32)
        different = {plan.texts for plan in plans}
        ids = {texts: self.tokenize_texts(texts) if texts else none for texts in different}
        return [ids[plan.texts] for plan in plans]

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            **super()._get_mm_fields_config(hf_inputs, _without_ours(hf_processor_mm_kwargs)),
            PARCELS_FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        counts = [Plan.from_json(plan).count for plan in _plans(hf_processor_mm_kwargs)]
        return [
            PromptReplacement(
                modality="image",
                target=[self._image_token_id],
                replacement=lambda item: [self._image_token_id] * counts[item],
            )
        ]


def _focus(options: PruningOptions, plan: Plan) -> int:
    """Tokens of an image's focus; none where little of a padded picture is left for a base."""
    try:
        return settle_focus(options, plan.pruner, plan.budget)
    except OptionsError:
        return 0


def _reads_text(plan: Plan) -> bool:
    return pruner_class(plan.method).reads_text


def _guided(plan: Plan, texts: tuple[str, ...]) -> Plan:
    """The plan with the texts that guide, if its method reads any."""
    if not _reads_text(plan):
        return plan
    check_texts(plan.method, texts)
    return dataclasses.replace(plan, texts=texts)


def _items(images: list[object]) -> MultiModalDataItems:
    return MultiModalDataItems({"image": ImageProcessorItems(images)})


def _without_ours(hf_processor_mm_kwargs: Mapping[str, object]) -> dict[str, object]:
    """What stock vLLM may know of."""
    return {key: value for key, value in hf_processor_mm_kwargs.items() if key != OPTIONS_KEY}


def _plans(hf_processor_mm_kwargs: Mapping[str, object]) -> list[str]:
    """The items' plans, in their JSON form."""
    plans = hf_processor_mm_kwargs[OPTIONS_KEY]
    assert isinstance(plans, list)
    return plans
