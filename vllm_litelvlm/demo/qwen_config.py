"""``config.json`` of Qwen-VLs as it is published, of any size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
#: Those whose files have the layout of transformers before 4.52.
FLAT = ("qwen2_vl", "qwen2_5_vl")
_ARCHITECTURES = {
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
}


@dataclass(frozen=True)
class QwenGeometry:
    """Sizes of the parts; widths and counts as in the configurations of transformers."""

    vision_width: int = 64
    vision_layers: int = 4
    vision_heads: int = 2
    llm_width: int = 64
    llm_layers: int = 3
    llm_heads: int = 2
    llm_kv_heads: int = 2
    llm_mlp: int = 128
    vocabulary: int = 2048
    positions: int = 4096
    #: Of an image, in visual tokens.
    least_tokens: int = 4
    most_tokens: int = 1280
    #: Of Qwen3.5, every such layer attends to all tokens, and those between them are recurrent.
    attention_interval: int = 3


#: For tests: seconds to build and to run.
TINY_QWEN = QwenGeometry()
#: An 85-million-parameter language model, to try things out on a CPU.
SMALL_QWEN = QwenGeometry(
    vision_width=256,
    vision_layers=6,
    vision_heads=4,
    llm_width=768,
    llm_layers=12,
    llm_heads=12,
    llm_kv_heads=12,
    llm_mlp=2048,
    vocabulary=8192,
    positions=32768,
    most_tokens=16384,
    attention_interval=4,
)
#: A language model of 1.1 billion parameters, and a tower of CLIP-L's size.
LARGE_QWEN = QwenGeometry(
    vision_width=1024,
    vision_layers=24,
    vision_heads=16,
    llm_width=2048,
    llm_layers=22,
    llm_heads=32,
    llm_kv_heads=4,
    llm_mlp=5632,
    vocabulary=8192,
    positions=32768,
    most_tokens=16384,
    attention_interval=4,
)


def published_config(
    kind: Kind, geometry: QwenGeometry, tokenizer: Any, dtype: str
) -> dict[str, Any]:
    """What the file holds: of Qwen2-VL and Qwen2.5-VL flat, of the others nested."""
    width = geometry.llm_width // geometry.llm_heads
    text: dict[str, Any] = {
        "hidden_size": geometry.llm_width,
        "intermediate_size": geometry.llm_mlp,
        "num_hidden_layers": geometry.llm_layers,
        "num_attention_heads": geometry.llm_heads,
        "num_key_value_heads": geometry.llm_kv_heads,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": geometry.positions,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
        **_PARTS[kind.removesuffix("_moe")](geometry, width),
        "dtype" if kind.startswith("qwen3_5") else "torch_dtype": dtype,
    }
    if kind.endswith("_moe"):
        text |= {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 3 * geometry.llm_mlp // 8,
        }
    if kind == "qwen3_vl_moe":
        text |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
    if kind == "qwen3_5_moe":
        text["shared_expert_intermediate_size"] = geometry.llm_mlp // 2
    tokens = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }.items()
    }
    nested = {"text_config": {**text, "model_type": f"{kind}_text"}, "tie_word_embeddings": False}
    return {
        "architectures": [f"{_ARCHITECTURES[kind]}ForConditionalGeneration"],
        "model_type": kind,
        **tokens,
        **(text if kind in FLAT else nested),
        "vision_config": _vision(kind, geometry),
    }


def _qwen2(geometry: QwenGeometry, width: int) -> dict[str, Any]:
    # Shares of time, height and width in a head's frequencies, as published.
    space = width // 2 * 6 // 16
    section = [width // 2 - 2 * space, space, space]
    return {
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": section},
    }


def _qwen3(geometry: QwenGeometry, width: int) -> dict[str, Any]:
    space = width // 2 * 5 // 16
    return {
        "head_dim": width,
        "attention_bias": False,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": [width // 2 - 2 * space, space, space],
            "mrope_interleaved": True,
        },
    }


def _qwen35(geometry: QwenGeometry, width: int) -> dict[str, Any]:
    interval, rotated = geometry.attention_interval, width // 8
    return {
        "head_dim": width,
        "attention_bias": False,
        "attn_output_gate": True,
        "full_attention_interval": interval,
        "layer_types": [
            "linear_attention" if (number + 1) % interval else "full_attention"
            for number in range(geometry.llm_layers)
        ],
        "linear_conv_kernel_dim": 4,
        # The one that vLLM's kernel for CPUs knows.
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": geometry.llm_kv_heads,
        "linear_num_value_heads": 2 * geometry.llm_kv_heads,
        "mamba_ssm_dtype": "float32",
        "partial_rotary_factor": 0.25,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [(rotated + 2) // 3, (rotated + 1) // 3, rotated // 3],
            "mrope_interleaved": True,
        },
    }


#: What a kind's language model has of its own, by the width of a head.
_PARTS: dict[str, Callable[[QwenGeometry, int], dict[str, Any]]] = {
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2,
    "qwen3_vl": _qwen3,
    "qwen3_5": _qwen35,
}


def _vision(kind: Kind, geometry: QwenGeometry) -> dict[str, Any]:
    common: dict[str, Any] = {
        "depth": geometry.vision_layers,
        "num_heads": geometry.vision_heads,
        "patch_size": 14 if kind in FLAT else 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if kind == "qwen2_vl":
        return {
            **common,
            "embed_dim": geometry.vision_width,
            "hidden_size": geometry.llm_width,
            "mlp_ratio": 2,
            "in_chans": 3,
        }
    common |= {
        "hidden_size": geometry.vision_width,
        "intermediate_size": 2 * geometry.vision_width,
        "out_hidden_size": geometry.llm_width,
    }
    if kind == "qwen2_5_vl":
        return {
            **common,
            "in_chans": 3,
            "window_size": 112,
            "fullatt_block_indexes": [1, geometry.vision_layers - 1],
            "tokens_per_second": 2,
            "hidden_act": "silu",
        }
    return {
        **common,
        "model_type": kind,
        "in_channels": 3,
        "num_position_embeddings": 48**2,
        "deepstack_visual_indexes": [] if kind.startswith("qwen3_5") else [1, 2],
        "hidden_act": "gelu_pytorch_tanh",
    }
