"""Qwen3.5 whose language model gets only the visual tokens that a request's text needs.

Most of its layers are recurrent and read the kept tokens one behind the other; to those that
attend, each has its place in the image.
"""

from vllm.model_executor.models.qwen3_5 import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeProcessingInfo,
    Qwen3_5ProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_litelvlm.plugin.models.qwen_front import Qwen3VLProcessor, QwenFamily
from vllm_litelvlm.plugin.models.qwen_vl import PrunedQwen


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=Qwen3_5ProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class LiteLVLMQwen35(PrunedQwen, Qwen3_5ForConditionalGeneration):
    """vLLM's Qwen3.5 with pruning behind the merger."""

    litelvlm_family = QwenFamily("Qwen3.5")


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLProcessor, info=Qwen3_5MoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class LiteLVLMQwen35Moe(PrunedQwen, Qwen3_5MoeForConditionalGeneration):
    """The same with experts in the language model."""

    litelvlm_family = QwenFamily("Qwen3.5-MoE")
