"""The multimodal processor: decides, per request, which pruning each image gets."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalHashes, MultiModalInput
from vllm.model_executor.models.llava import (
    BaseLlavaProcessingInfo,
    LlavaDummyInputsBuilder,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs, PromptReplacement, PromptUpdate
from vllm.multimodal.processing.context import TimingContext
from vllm.renderers.hf import resolve_chat_template
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import (
    OPTIONS_KEY,
    PruningOptions,
    ServerOptions,
)
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
from vllm_litelvlm.plugin.pixels import Picture, PixelCache
from vllm_litelvlm.plugin.plan import Plan
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.plugin.refusal import refusals
from vllm_litelvlm.plugin.turns import Turn
from vllm_litelvlm.pruning.registry import check_texts, method_names, pruner_class, settle_focus
from vllm_litelvlm.pruning.window import Window
from vllm_litelvlm.vision.clip import patch_count
from vllm_litelvlm.vision.frame import Frame, check_shows_squares
from vllm_litelvlm.vision.pixels import ByteProcessor
from vllm_litelvlm.vision.text import ClipTextTokenizer

#: Of an item's :class:`~vllm_litelvlm.plugin.parcel.Parcel`.
PARCELS_FIELD = "litelvlm_parcels"


class LiteLVLMProcessor(LlavaMultiModalProcessor):
    """LLaVA's processor, with as many placeholder tokens an image as its plan keeps.

    What vLLM takes for the images of a request are here the items of its layout: an image, or a
    layer of one. They share a :class:`~vllm_litelvlm.plugin.pixels.Picture`, and each has a plan.
    """

    #: The server's ``--chat-template``, which is told before the first request.
    chat_template: str | None = None

    # vLLM builds a processor for every chat to ask it one thing, so each part waits to be used.

    @cached_property
    def _guidance(self) -> GuidanceConfig:
        return guidance_config(self.info.get_hf_config())

    @cached_property
    def _patches(self) -> int:
        return patch_count(self.info.get_hf_config().vision_config)

    @cached_property
    def _pixels(self) -> PixelCache:
        max_bytes = int(self._guidance.server.pixel_cache_gb * 2**30)
        cache = PixelCache(max_bytes, self._hash_algorithm)
        look_in(cache)
        return cache

    @cached_property
    def _image_token_id(self) -> int:
        return int(self.info.get_hf_config().image_token_index)

    @property
    def _hash_algorithm(self) -> str:
        return str(self.info.ctx.get_mm_config().mm_hasher_algorithm)

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

    @cached_property
    def _padding(self) -> tuple[float, ...]:
        """The colour that the image processor takes for none, RGB from 0 to 1.

        Raises OptionsError for a processor that does not show all of a square.
        """
        processor = self.info.get_hf_processor().image_processor
        check_shows_squares(processor)
        return tuple(processor.image_mean)

    @cached_property
    def _reader(self) -> InstructionReader:
        """For prompts that the caller has rendered, by the server's template or the model's."""
        context = self.info.ctx
        own: str | None = resolve_chat_template(
            context.get_tokenizer(), None, None, model_config=context.model_config
        )
        templates = [*filter(None, [self.chat_template, own])]
        return InstructionReader(self.info.get_tokenizer(), self._image_token_id, templates)

    @cached_property
    def _text_tokenizer(self) -> ClipTextTokenizer:
        return ClipTextTokenizer(self._guidance.clip_model, self._guidance.text_tokens)

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
        server = self._guidance.server.of(others.pop(VARIANT_KEY, None))
        if isinstance(asked, Plan):  # vLLM's memory profile
            pictures = self._pictures(inputs, others, "crop")
            layout = one_layer(inputs.prompt, [asked] * len(pictures))
        else:
            with refusals():
                settled = settle_options(asked, server, self._patches)
                pictures = self._pictures(inputs, others, settled[0].frame)
                windows = [picture.window for picture in pictures]
                layout = self._lay_out(settled, server, inputs.prompt, windows, conversation)
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
        if isinstance(images, ImageEmbeddingItems):
            raise VLLMValidationError(
                "litelvlm prunes by what the vision tower saw, so image embeddings cannot be given "
                "directly; send the image itself, or serve without --plugin litelvlm.",
                parameter="image_embeds",
            )
        digest = partial(MultiModalHasher.hash_kwargs, self._hash_algorithm, **others)
        names = (inputs.mm_uuid_items or {}).get("image") or [None] * len(images)
        padding = self._padding if frame == "pad" else None
        grid = math.isqrt(self._patches)
        return [
            Picture(image, name, digest, self._pixels, padding, grid)
            for image, name in zip(images.get_all_items_for_hash(), names, strict=True)
        ]

    def _lay_out(
        self,
        settled: tuple[PruningOptions, Plan, int],
        server: ServerOptions,
        prompt: list[int],
        windows: Sequence[Window | None],
        conversation: Conversation | None,
    ) -> Layout:
        """Where what is kept of each image stands in the prompt, and why it is kept.

        ``settled``: by :func:`settle_options`. ``windows``: one an image, as
        :attr:`Picture.window`. Raises OptionsError.
        """
        images = len(windows)
        options, whole, focus = settled
        plans = [Plan.decide(options, self._patches, window) for window in windows]
        if any(plan.original for plan in plans):
            self._check_length(plans, len(prompt) - images)
        if focus and prompt.count(self._image_token_id) == images:
            layout = two_layers(
                prompt,
                self._image_token_id,
                plans,
                list(calls(self._turns(prompt, conversation), options, server.max_texts)),
                focuses=[_focus(options, plan) for plan in plans],
                patches=self._patches,
                block=self._guidance.block,
            )
        else:
            guided = any(map(_reads_text, plans))
            texts = self._texts(options, prompt, conversation) if guided else ()
            layout = one_layer(prompt, [_guided(plan, texts) for plan in plans])
        metrics.count_images(
            whole.method,
            images=images,
            tokens_in=images * self._patches,
            tokens_kept=sum(item.plan.count for item in layout.items),
        )
        return layout

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
            texts = guiding_texts(said, options.guide, self._guidance.server.max_texts)
        return texts

    def _turns(self, prompt: Sequence[int], conversation: Conversation | None) -> list[Turn]:
        tokenizer = self.info.get_tokenizer()
        turns = (
            conversation.turns(prompt, tokenizer, self._image_token_id) if conversation else None
        )
        return self._reader.turns(prompt) if turns is None else turns

    def _check_length(self, plans: Sequence[Plan], words: int) -> None:
        """Refuse a prompt that fits only because it is pruned: its last positions do not exist.

        ``words``: its tokens beside the images.
        """
        limit = position_limit(self.info.ctx.model_config)
        positions = words + sum(
            len(plan.pruner.places(self._patches)) if plan.original else plan.count
            for plan in plans
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
        server = self._guidance.server
        methods = sorted({options.method for options in server.sets.values()})
        if server.request_options:
            methods = [*(server.methods or method_names())]
        budget = server.highest_budget(self._patches)
        filler = " a" * (self._guidance.text_tokens - 6)  # start, end, and four digits
        texts = tuple(f"{number:04d}{filler}" for number in range(server.max_texts))
        plan = Plan(Profile.name, {"methods": methods}, budget, texts)
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

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        others = dict(hf_kwargs)
        plans = [Plan.from_json(plan) for plan in _plans(hf_kwargs)]
        del others[OPTIONS_KEY]
        pictures = hf_data["images"]
        assert isinstance(pictures, Sequence)
        if None in pictures:  # where vLLM has no cache to look in
            raise VLLMValidationError(
                "An image was sent by its uuid alone, and its data is not provided and not in any "
                "cache; send the image itself.",
                parameter="uuid",
            )

        def preprocess(picture: Picture) -> torch.Tensor:
            image = picture.image
            # Arrays may hold other numbers than bytes.
            if not others and self.bytes_of is not None and isinstance(image, Image.Image):
                return self.bytes_of(image)
            some = {**hf_data, "images": [image]}
            pixels = super(LiteLVLMProcessor, self)._call_hf_processor(some, others)
            numbers = pixels["pixel_values"]
            assert isinstance(numbers, torch.Tensor)
            # With their batch dimension: vLLM puts equal shapes into one tensor, and would take
            # bytes for such numbers.
            return numbers.to(self.info.ctx.model_config.dtype)

        return BatchFeature(
            {
                "pixel_values": self._pixels.get(pictures, preprocess),
                PARCELS_FIELD: [
                    pack(plan, picture.key, ids)
                    for plan, picture, ids in zip(
                        plans, pictures, self._text_ids(plans), strict=True
                    )
                ],
            }
        )

    def _text_ids(self, plans: Sequence[Plan]) -> list[torch.Tensor]:
        """Token ids of every plan's texts, int32 [texts, length] each."""
        none = torch.zeros(0, 1, dtype=torch.int32)
        different = {plan.texts for plan in plans}
        ids = {texts: self._text_tokenizer(texts) if texts else none for texts in different}
        return [ids[plan.texts] for plan in plans]

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            **super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs),
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


def _plans(hf_processor_mm_kwargs: Mapping[str, object]) -> list[str]:
    """The items' plans, in their JSON form."""
    plans = hf_processor_mm_kwargs[OPTIONS_KEY]
    assert isinstance(plans, list)
    return plans


def build_processor(
    info: BaseLlavaProcessingInfo, dummy_inputs: LlavaDummyInputsBuilder[LlavaProcessingInfo]
) -> LiteLVLMProcessor:
    """The factory that vLLM's registry calls. The configuration was checked at start."""
    assert isinstance(info, LlavaProcessingInfo)
    return LiteLVLMProcessor(info, dummy_inputs)
