"""LLaVA-1.5 whose language model gets only the visual tokens that a request's text needs."""

from collections.abc import Iterable

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_litelvlm.plugin.config import guidance_config
from vllm_litelvlm.plugin.metrics import worker_histograms
from vllm_litelvlm.plugin.plan import WorkOrder
from vllm_litelvlm.plugin.processor import ORDERS_FIELD, TEXT_IDS_FIELD, build_processor
from vllm_litelvlm.plugin.stopwatch import Stopwatch
from vllm_litelvlm.plugin.trace import trace_selections
from vllm_litelvlm.pruning.base import Selection, Signal
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.vision.checkpoint import TowerTap, load_guidance, read_clip_config
from vllm_litelvlm.vision.guidance import Guidance


@MULTIMODAL_REGISTRY.register_processor(
    build_processor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class LiteLVLMLlava(LlavaForConditionalGeneration):
    """vLLM's LLaVA with pruning between the vision tower and the projector."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._guidance_config = guidance_config(self.config)
        self._stopwatch = Stopwatch()
        self.litelvlm: Guidance | None = None
        if self.multimodal_config.get_limit_per_prompt("image") > 0:
            tower = self.config.vision_config
            clip = read_clip_config(self._guidance_config.clip_model, tower)
            self.litelvlm = Guidance(tower, clip)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the model, and the scorer from the same checkpoint and its CLIP."""
        if self.litelvlm is None:
            return set(super().load_weights(weights))
        tap = TowerTap(self.litelvlm.scorer)
        loaded = set(super().load_weights(tap(weights)))
        load_guidance(
            self.litelvlm.scorer,
            self.litelvlm.text_tower,
            tap.found,
            self._guidance_config.clip_model,
        )
        return loaded | {f"litelvlm.{name}" for name, _ in self.litelvlm.named_parameters()}

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Kept tokens of every image of the step, one [kept, width] tensor an image."""
        orders = [WorkOrder.decode(order) for order in _items(kwargs.pop(ORDERS_FIELD, ()))]
        text_ids = _items(kwargs.pop(TEXT_IDS_FIELD, ()))
        image_input = self._parse_and_validate_image_input(**kwargs)
        if image_input is None:
            return []
        if all(isinstance(order.pruner, KeepAll) for order in orders):
            return self._process_image_input(image_input)  # stock vLLM, bit for bit
        pixel_values = image_input["pixel_values"]
        assert len(orders) == len(text_ids) == len(pixel_values)
        needs = Guidance.needs([order.pruner for order in orders])
        hidden, feature_input = self._run_tower(pixel_values, Signal.CLS_ATTENTION in needs)
        selections = self._select(hidden, feature_input, text_ids, orders, needs)
        trace_selections(orders, text_ids, selections)
        kept = [
            patches.index_select(0, selection.indices)
            for patches, selection in zip(hidden[:, 1:], selections, strict=True)
        ]
        return self.multi_modal_projector(torch.cat(kept)).split([len(tokens) for tokens in kept])

    def _run_tower(
        self, pixel_values: Tensor, with_feature_input: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden state -2 with [CLS], [images, 1 + patches, width], and -3 if asked for."""
        if not with_feature_input:
            return self.vision_tower(pixel_values, feature_select_strategy="full"), None
        last = len(self.vision_tower.vision_model.encoder.layers)
        both = self.vision_tower(
            pixel_values, select_layers=[last - 1, last], feature_select_strategy="full"
        )
        feature_input, hidden = both.chunk(2, dim=-1)
        return hidden, feature_input

    def _select(
        self,
        hidden: Tensor,
        feature_input: Tensor | None,
        text_ids: list[Tensor],
        orders: list[WorkOrder],
        needs: frozenset[Signal],
    ) -> list[Selection]:
        assert self.litelvlm is not None
        histograms = worker_histograms() if get_tensor_model_parallel_rank() == 0 else None
        guidance_seconds, selection_seconds = histograms or (None, None)
        pruners, budgets = zip(*((order.pruner, order.budget) for order in orders), strict=True)
        with self._stopwatch.time(guidance_seconds, hidden.device):
            signals = self.litelvlm.signals(hidden, feature_input, text_ids, needs)
        with self._stopwatch.time(selection_seconds, hidden.device):
            return Guidance.select(signals, pruners, budgets)


def _items(field: object) -> list[Tensor]:
    """A batched field as one tensor an image: vLLM stacks equal shapes and lists others."""
    assert isinstance(field, Tensor | list | tuple)
    return list(field)
