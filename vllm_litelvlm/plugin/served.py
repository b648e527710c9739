"""Which models the plugin serves."""

from typing import Any

#: Architecture in a checkpoint's config.json to the class that serves it.
MODELS = {"LlavaForConditionalGeneration": "vllm_litelvlm.plugin.models.llava:LiteLVLMLlava"}


def is_ours(holder: Any) -> bool:
    """Whether the model of what has a ``model_config`` is one that we serve."""
    return not MODELS.keys().isdisjoint(holder.model_config.architectures)
