"""Which models the plugin serves."""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_litelvlm.plugin.family import Family

_QWEN = "vllm_litelvlm.plugin.models.qwen_vl"
_QWEN35 = "vllm_litelvlm.plugin.models.qwen3_5"

#: Architecture in a checkpoint's config.json to the class that serves it.
MODELS = {
    "LlavaForConditionalGeneration": "vllm_litelvlm.plugin.models.llava:LiteLVLMLlava",
    "LlavaSegForConditionalGeneration": "vllm_litelvlm.plugin.models.llava_seg:LiteLVLMLlavaSeg",
    "LlavaNextForConditionalGeneration": (
        "vllm_litelvlm.plugin.models.llava_next:LiteLVLMLlavaNext"
    ),
    "Qwen2VLForConditionalGeneration": "vllm_litelvlm.plugin.models.qwen2_vl:LiteLVLMQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": f"{_QWEN}:LiteLVLMQwen25VL",
    "Qwen3VLForConditionalGeneration": f"{_QWEN}:LiteLVLMQwen3VL",
    "Qwen3VLMoeForConditionalGeneration": f"{_QWEN}:LiteLVLMQwen3VLMoe",
    "Qwen3_5ForConditionalGeneration": f"{_QWEN35}:LiteLVLMQwen35",
    "Qwen3_5MoeForConditionalGeneration": f"{_QWEN35}:LiteLVLMQwen35Moe",
}


def is_ours(holder: Any) -> bool:
    """Whether the model of what has a ``model_config`` is one that we serve."""
    return not MODELS.keys().isdisjoint(holder.model_config.architectures)


def family_of(model_config: Any) -> "Family":
    """The family of a model that is ours."""
    return family(next(name for name in model_config.architectures if name in MODELS))


@cache
def family(architecture: str) -> "Family":
    """The family of an architecture that is ours; imports vLLM's class for it."""
    module, _, name = MODELS[architecture].partition(":")
    found: Family = getattr(import_module(module), name).litelvlm_family
    return found
