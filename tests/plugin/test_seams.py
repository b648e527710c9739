"""The hooks of vLLM that the plugin overrides or wraps still look as it expects them to."""

import inspect
import os
import subprocess
import sys

import pytest
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.model_executor.models.llava import (
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
)
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VisionAttention,
    Qwen2_5_VisionTransformer,
    Qwen2_5_VLForConditionalGeneration,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
)
from vllm.model_executor.models.siglip import SiglipVisionModel
from vllm.renderers import ChatParams
from vllm.renderers.base import BaseRenderer
from vllm.renderers.hf import HfRenderer, safe_apply_chat_template
from vllm.renderers.online_renderer import OnlineRenderer

from vllm_litelvlm.errors import CompatibilityError
from vllm_litelvlm.plugin import wrap


@pytest.mark.parametrize(
    ("hook", "parameters"),
    [
        (LlavaMultiModalProcessor.apply, ["self", "inputs", "timing_ctx"]),
        (LlavaMultiModalProcessor._call_hf_processor, ["self", "hf_data", "hf_kwargs"]),
        (
            LlavaMultiModalProcessor._get_mm_fields_config,
            ["self", "hf_inputs", "hf_processor_mm_kwargs"],
        ),
        (
            LlavaMultiModalProcessor._get_prompt_updates,
            ["self", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"],
        ),
        (LlavaMultiModalProcessor.get_dummy_inputs, ["self", "seq_len", "mm_counts", "mm_options"]),
        (LlavaForConditionalGeneration.embed_multimodal, ["self", "kwargs"]),
        (OnlineRenderer.render_chat, ["self", "request", "skip_mm_cache"]),
        (AuthenticationMiddleware.verify_token, ["self", "headers"]),
        (LlavaForConditionalGeneration.load_weights, ["self", "weights"]),
        (
            CLIPVisionModel.forward,
            ["self", "pixel_values", "select_layers", "feature_select_strategy"],
        ),
        (
            SiglipVisionModel.forward,
            [
                "self",
                "pixel_values",
                "interpolate_pos_encoding",
                "select_layers",
                "feature_select_strategy",
            ],
        ),
        *(
            (
                model.get_mrope_input_positions,
                ["self", "input_tokens", "mm_features"],
            )
            for model in (Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration)
        ),
        *(
            (
                model.recompute_mrope_positions,
                [
                    "self",
                    "input_ids",
                    "multimodal_embeddings",
                    "mrope_positions",
                    "num_computed_tokens",
                ],
            )
            for model in (Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration)
        ),
        (
            Qwen3VLMultiModalProcessor._apply_hf_processor_main,
            ["self", "mm_items", "hf_kwargs"],
        ),
        (
            Qwen3VLMultiModalProcessor.get_video_repl,
            [
                "tokens_per_frame",
                "timestamps",
                "tokenizer",
                "vision_start_token_id",
                "vision_end_token_id",
                "video_token_id",
                "select_token_id",
            ],
        ),
        (
            Qwen2_5_VisionAttention.forward,
            [
                "self",
                "x",
                "cu_seqlens",
                "rotary_pos_emb_cos",
                "rotary_pos_emb_sin",
                "max_seqlen",
                "sequence_lengths",
            ],
        ),
        (Qwen2_5_VisionTransformer.get_rope_by_thw, ["self", "t", "h", "w"]),
        (BaseRenderer._apply_prompt_extras, ["self", "prompts", "prompt_extras"]),
        (BaseRenderer.warmup, ["self", "chat_params"]),
        (HfRenderer.render_messages, ["self", "messages", "params"]),
        (HfRenderer.render_messages_async, ["self", "messages", "params"]),
        (ChatParams.get_apply_chat_template_kwargs, ["self"]),
        (
            safe_apply_chat_template,
            [
                "model_config",
                "tokenizer",
                "conversation",
                "tools",
                "chat_template",
                "tokenize",
                "kwargs",
            ],
        ),
    ],
)
def test_hook_has_the_parameters_that_the_plugin_overrides(
    hook: object, parameters: list[str]
) -> None:
    assert callable(hook)
    assert list(inspect.signature(hook).parameters) == parameters


def test_hook_that_moved_fails_loudly_naming_the_versions() -> None:
    with pytest.raises(CompatibilityError, match=r"vllm\.config\.NoSuchHook.*0\.32, 0\.33"):
        wrap.wrap("vllm.config", "NoSuchHook", lambda stock: stock)


@pytest.mark.parametrize(
    ("found", "fits"),
    [("0.31.2", False), ("0.32.0+cpu", True), ("0.33.1", True), ("0.34.0", False)],
)
def test_unsupported_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: str, fits: bool
) -> None:
    monkeypatch.setattr(wrap, "_vllm_version", lambda: found)
    if fits:
        wrap.check_version()
    else:
        with pytest.raises(CompatibilityError, match=found):
            wrap.check_version()


@pytest.mark.parametrize(
    ("environment", "is_ours"),
    [
        ({}, False),
        ({"VLLM_PLUGINS": ""}, False),
        ({"VLLM_PLUGINS": "litelvlm"}, True),
        ({"VLLM_LITELVLM": "1"}, True),
        ({"VLLM_PLUGINS": "litelvlm", "VLLM_LITELVLM": "0"}, False),
    ],
)
def test_vllm_is_touched_only_when_the_plugin_is_asked_for(
    environment: dict[str, str], is_ours: bool
) -> None:
    program = """
from vllm.plugins import load_general_plugins
load_general_plugins()
import vllm.renderers.base, vllm.renderers.hf, vllm.renderers.online_renderer as online
from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from prometheus_client import REGISTRY
import sys
name = "LlavaForConditionalGeneration"
print(
    "litelvlm" in repr(ModelRegistry.models[name]),
    name in MODELS_CONFIG_MAP,
    hasattr(online.validate_request_mm_kwargs, "_litelvlm"),
    hasattr(vllm.renderers.base.BaseRenderer._apply_prompt_extras, "_litelvlm"),
    hasattr(vllm.renderers.base.BaseRenderer.warmup, "_litelvlm"),
    hasattr(vllm.renderers.hf.HfRenderer.render_messages, "_litelvlm"),
    hasattr(vllm.renderers.hf.HfRenderer.render_messages_async, "_litelvlm"),
    hasattr(vllm.plugins.load_endpoint_plugins, "_litelvlm"),
    "litelvlm_guidance_seconds" in str(list(REGISTRY._collector_to_names)) or
    any("vllm_litelvlm" in type(one).__module__ for one in REGISTRY._collector_to_names),
)
"""
    clean = {name: value for name, value in os.environ.items() if "LITELVLM" not in name}
    clean.pop("VLLM_PLUGINS", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-9:] == [str(is_ours)] * 9
