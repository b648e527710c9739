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
from vllm_litelvlm.plugin.models.tower import VllmTower
from vllm_litelvlm.plugin.plan import WorkOrder
from vllm_litelvlm.plugin.processor import ORDERS_FIELD, TEXT_IDS_FIELD, build_processor
from vllm_litelvlm.plugin.stopwatch import Stopwatch
from vllm_litelvlm.plugin.trace import trace_selections
from vllm_litelvlm.pruning.base import Selection, Signal
from vllm_litelvlm.pruning.batch import needed_signals, prune
from vllm_litelvlm.pruning.keep_all import KeepAll
from vllm_litelvlm.vision.checkpoint import TowerTap, load_guidance, read_clip_config
from vllm_litelvlm.vision.guidance import Guidance
from vllm_litelvlm.vision.seen import Seen, needs_feature_input, needs_features


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
        selections = self._select(pixel_values, text_ids, orders)
        trace_selections(orders, text_ids, selections)
        tokens = [selection.tokens for selection in selections]
        return self.multi_modal_projector(torch.cat(tokens)).split([len(kept) for kept in tokens])

    def _select(
        self, pixel_values: Tensor, text_ids: list[Tensor], orders: list[WorkOrder]
    ) -> list[Selection]:
        assert self.litelvlm is not None
        histograms = worker_histograms() if get_tensor_model_parallel_rank() == 0 else None
        guidance_seconds, selection_seconds = histograms or (None, None)
        pruners, budgets = zip(*((order.pruner, order.budget) for order in orders), strict=True)
        needs = needed_signals(pruners)
        seen = self._look(pixel_values, needs)
        with self._stopwatch.time(guidance_seconds, seen.device):
            signals = self.litelvlm.signals(seen, text_ids, needs)
        with self._stopwatch.time(selection_seconds, seen.device):
            return prune(signals, pruners, budgets)

    def _look(self, pixel_values: Tensor, needs: frozenset[Signal]) -> Seen:
        """Run the tower, and the projector on all of it, as far as they are needed."""
        hidden = feature_input = projected = None
        tower = VllmTower(self.vision_tower.vision_model, pixel_values)
        if needs_feature_input(needs):
            last = tower.layers
            both = self.vision_tower(
                pixel_values, select_layers=[last - 1, last], feature_select_strategy="full"
            )
            feature_input, hidden = both.chunk(2, dim=-1)
        elif needs_features(needs):
            hidden = self.vision_tower(pixel_values, feature_select_strategy="full")
        if Signal.PROJECTED in needs:
            assert hidden is not None
            projected = self.multi_modal_projector(hidden[:, 1:])
        return Seen(
            images=len(pixel_values),
            patches=self.vision_tower.vision_model.embeddings.num_patches,
            device=pixel_values.device,
            hidden=hidden,
            feature_input=feature_input,
            projected=projected,
            tower=tower,
        )


def _items(field: object) -> list[Tensor]:
    """A batched field as one tensor an image: vLLM stacks equal shapes and lists others."""
    assert isinstance(field, Tensor | list | tuple)
    return list(field)
