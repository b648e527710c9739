"""The multimodal processor: decides, per request, which pruning each image gets."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalInput
from vllm.model_executor.models.llava import (
    BaseLlavaProcessingInfo,
    LlavaDummyInputsBuilder,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageEmbeddingItems, MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs, PromptReplacement, PromptUpdate
from vllm.multimodal.processing.context import TimingContext
from vllm.renderers.hf import resolve_chat_template

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.options import OPTIONS_KEY, PruningOptions, parse_request_options
from vllm_litelvlm.plugin import metrics
from vllm_litelvlm.plugin.chat_templates import templates_in_use
from vllm_litelvlm.plugin.config import guidance_config, position_limit
from vllm_litelvlm.plugin.instruction import InstructionReader
from vllm_litelvlm.plugin.pixels import PixelCache, as_field, image_key
from vllm_litelvlm.plugin.plan import Plan, WorkOrder
from vllm_litelvlm.plugin.profile import Profile
from vllm_litelvlm.plugin.repeats import Repeats
from vllm_litelvlm.pruning.registry import check_texts, method_names, pruner_class
from vllm_litelvlm.vision.text import ClipTextTokenizer

ORDERS_FIELD = "litelvlm_orders"
TEXT_IDS_FIELD = "litelvlm_text_ids"
IMAGE_KEYS_FIELD = "litelvlm_image_keys"


class LiteLVLMProcessor(LlavaMultiModalProcessor):
    """LLaVA's processor, with as many placeholder tokens an image as the plan keeps."""

    def __init__(
        self,
        info: LlavaProcessingInfo,
        dummy_inputs: LlavaDummyInputsBuilder[LlavaProcessingInfo],
    ) -> None:
        super().__init__(info, dummy_inputs)
        config = info.get_hf_config()
        self._guidance = guidance_config(config)
        self._patches = info.get_max_image_tokens()
        self._repeats = Repeats()
        self._pixels = PixelCache(int(self._guidance.server.pixel_cache_gb * 2**30))
        self._image_token_id = config.image_token_index

    @cached_property
    def _instruction_reader(self) -> InstructionReader:
        return InstructionReader(self.info.get_tokenizer(), self._image_token_id)

    @cached_property
    def _text_tokenizer(self) -> ClipTextTokenizer:
        return ClipTextTokenizer(self._guidance.clip_model, self._guidance.text_tokens)

    @cached_property
    def _own_template(self) -> str | None:
        """The model's own chat template, for prompts that the caller has rendered."""
        context = self.info.ctx
        template: str | None = resolve_chat_template(
            context.get_tokenizer(), None, None, model_config=context.model_config
        )
        return template

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """Replace the request's options by the plan that they amount to, then process as usual.

        Raises VLLMValidationError (HTTP 400) for options that are not allowed, and for image
        embeddings, which have not gone through the vision tower that the scores come from.
        """
        given = dict(inputs.hf_processor_mm_kwargs)
        items = inputs.mm_data_items
        if isinstance(items.get("image"), ImageEmbeddingItems):
            raise VLLMValidationError(
                "litelvlm prunes by what the vision tower saw, so image embeddings cannot be given "
                "directly; send the image itself, or serve without --plugin litelvlm.",
                parameter="image_embeds",
            )
        plan = given.pop(OPTIONS_KEY, None)
        if not isinstance(plan, Plan):
            try:
                plan = self._decide(parse_request_options(plan, self._guidance.server), inputs)
            except OptionsError as error:
                raise VLLMValidationError(
                    str(error), parameter=f"mm_processor_kwargs.{OPTIONS_KEY}"
                ) from None
            metrics.count_images(
                plan.method,
                images=items.get_all_counts().get("image", 0),
                tokens_in=self._patches,
                tokens_kept=plan.pruner.output_count(plan.budget),
            )
        given[OPTIONS_KEY] = plan.to_json()
        return super().apply(dataclasses.replace(inputs, hf_processor_mm_kwargs=given), timing_ctx)

    def _decide(self, options: PruningOptions, inputs: ProcessorInputs) -> Plan:
        plan = Plan.decide(options, self._patches)
        self._guidance.server.check_request(options, plan.budget, self._patches)
        if plan.original:
            self._check_length(plan, inputs)
        if not pruner_class(plan.method).reads_text:
            return plan
        texts = options.texts
        if texts is None:
            templates = [*templates_in_use(), *filter(None, [self._own_template])]
            turns = self._instruction_reader.user_turns(inputs.prompt, templates)
            wanted = {"last": turns[-1:], "first": turns[:1], "all": turns}[options.guide]
            texts = tuple(turn for turn in wanted if turn)[-self._guidance.server.max_texts :]
        check_texts(plan.method, texts)
        plan = dataclasses.replace(plan, texts=texts)
        return plan if options.repeat == "prune" else self._settle_repeat(options, plan, inputs)

    def _check_length(self, plan: Plan, inputs: ProcessorInputs) -> None:
        """Refuse a prompt that fits only because it is pruned: its last positions do not exist."""
        limit = position_limit(self.info.ctx.model_config)
        images = inputs.mm_data_items.get_all_counts().get("image", 0)
        whole = len(plan.pruner.places(self._patches))
        positions = len(inputs.prompt) + images * (whole - 1)
        if positions > limit:
            raise OptionsError(
                f"litelvlm option 'positions' is 'original', by which the prompt's {images} images "
                f"and text take up {positions} positions; allowed: {limit}, as many as the model "
                "has. Send fewer images, or ask for 'compact'."
            )

    def _settle_repeat(self, options: PruningOptions, plan: Plan, inputs: ProcessorInputs) -> Plan:
        """What becomes of the plan where the same images came with other texts before."""
        items = inputs.mm_data_items.get("image")
        images = items.get_all() if items is not None else []
        if not images or any(image is None for image in images):
            return plan  # no image, or one that only vLLM's cache has, by a client's uuid
        untold = dataclasses.replace(plan, texts=()).to_json().encode()
        key = b"".join([*map(self._image_key, images), untold])
        if options.repeat == "full":
            first = self._repeats.is_first(key, plan.texts)
            return plan if first else Plan.whole(self._patches)
        kept = plan.pruner.output_count(plan.budget)
        texts = self._repeats.guiding(
            key,
            plan.texts,
            prompt=len(inputs.prompt) + len(images) * (kept - 1),
            saved=len(images) * (self._patches - kept),
            most=self._guidance.server.max_texts,
        )
        return dataclasses.replace(plan, texts=texts)

    def _image_key(self, image: object, **others: object) -> bytes:
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        return image_key(algorithm, image=image, **others)

    def get_dummy_inputs(self, *args: object, **kwargs: object) -> ProcessorInputs:
        """The costliest request that the server allows, for vLLM's memory profile.

        As many tokens as a request may ask for, by every method that requests may name, scored
        with the largest number of full-length texts.
        """
        inputs = super().get_dummy_inputs(*args, **kwargs)
        server = self._guidance.server
        methods = [server.defaults.method]
        if server.request_options:
            methods = [*(server.methods or method_names())]
        budget = min(self._patches, server.max_budget or self._patches)
        filler = " a" * (self._guidance.text_tokens - 6)  # start, end, and four digits
        texts = tuple(f"{number:04d}{filler}" for number in range(server.max_texts))
        plan = Plan(Profile.name, {"methods": methods}, budget, texts)
        return dataclasses.replace(inputs, hf_processor_mm_kwargs={OPTIONS_KEY: plan})

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        others = dict(hf_kwargs)
        plan = Plan.from_json(str(others.pop(OPTIONS_KEY)))
        images = hf_data["images"]
        assert isinstance(images, Sequence)
        keys = [self._image_key(image, **others) for image in images]

        def preprocess(places: list[int]) -> torch.Tensor:
            some = {**hf_data, "images": [images[place] for place in places]}
            pixels = super(LiteLVLMProcessor, self)._call_hf_processor(some, others)
            assert isinstance(pixels["pixel_values"], torch.Tensor)
            return pixels["pixel_values"]

        ids = (
            self._text_tokenizer(plan.texts) if plan.texts else torch.zeros(0, 1, dtype=torch.int32)
        )
        return BatchFeature(
            {
                "pixel_values": torch.stack(self._pixels.get(keys, preprocess)),
                ORDERS_FIELD: [WorkOrder.encode(plan)] * len(images),
                TEXT_IDS_FIELD: [ids] * len(images),
                IMAGE_KEYS_FIELD: [as_field(key) for key in keys],
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            **super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs),
            ORDERS_FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            TEXT_IDS_FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            IMAGE_KEYS_FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        plan = Plan.from_json(str(hf_processor_mm_kwargs[OPTIONS_KEY]))
        tokens = [self._image_token_id] * plan.pruner.output_count(plan.budget)
        return [
            PromptReplacement(
                modality="image", target=[self._image_token_id], replacement=lambda _: tokens
            )
        ]


def build_processor(
    info: BaseLlavaProcessingInfo, dummy_inputs: LlavaDummyInputsBuilder[LlavaProcessingInfo]
) -> LiteLVLMProcessor:
    """The factory that vLLM's registry calls. The configuration was checked at start."""
    assert isinstance(info, LlavaProcessingInfo)
    return LiteLVLMProcessor(info, dummy_inputs)
