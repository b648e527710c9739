"""Qwen2-VL whose language model gets only the visual tokens that a request's text needs."""

from typing import ClassVar

from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.plugin.models.qwen_front import QwenFamily, QwenProcessor
from vllm_litelvlm.plugin.models.qwen_vl import PrunedQwen


class Qwen2VLFamily(QwenFamily):
    """As Qwen2.5-VL, but for how its vision tower is spread over ranks."""

    def check(self, vllm_config: VllmConfig) -> None:
        """The tower's queries, keys and values do not lie head by head on several ranks."""
        super().check(vllm_config)
        ranks = vllm_config.parallel_config.tensor_parallel_size
        if ranks > 1:
            raise CompatibilityError(
                f"litelvlm prunes Qwen2-VL on one rank; --tensor-parallel-size is {ranks}. Leave "
                "it out, or serve without --plugin litelvlm."
            )


class Qwen2VLProcessor(QwenProcessor, Qwen2VLMultiModalProcessor):
    """Qwen2-VL's."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLProcessor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class LiteLVLMQwen2VL(PrunedQwen, Qwen2VLForConditionalGeneration):
    """vLLM's Qwen2-VL with pruning behind the merger."""

    supports_multimodal_pruning: ClassVar = True
    supported_video_pruning_methods: ClassVar = ("evs",)
    litelvlm_family = Qwen2VLFamily("Qwen2-VL")

    def litelvlm_times(self, frames: int, seconds: float | None) -> tuple[int, ...]:
        """One position a frame, however long that is."""
        return tuple(range(frames))
