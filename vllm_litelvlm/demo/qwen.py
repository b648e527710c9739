"""Builds checkpoints of Qwen-VLs in the published layouts, with random weights.

The language model answers nonsense; the rest is as with published weights: the file layout,
configuration and tensor names of ``Qwen/Qwen2.5-VL-7B-Instruct`` and ``Qwen/Qwen3-VL-8B-Instruct``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vllm_litelvlm.demo.checkpoint import spread
from vllm_litelvlm.demo.vocabularies import QWEN_CHAT_TEMPLATE, qwen_tokenizer

Kind = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
#: Those whose files have the layout of transformers before 4.52.
_FLAT = ("qwen2_vl", "qwen2_5_vl")


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
)


def build_qwen(
    folder: Path,
    kind: Kind,
    geometry: QwenGeometry = TINY_QWEN,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a checkpoint to ``folder``; an existing complete build is used again."""
    marker = folder / "complete"
    described = f"{kind} {geometry} {dtype} {seed}"
    if marker.is_file() and marker.read_text() == described:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer(geometry.vocabulary)
    config = _config(kind, geometry, tokenizer, dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    read = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(read, dtype=dtype).eval()
    spread(model)
    tensors = dict(_published(name, tensor, kind) for name, tensor in model.state_dict().items())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    _processor(kind, geometry, tokenizer).save_pretrained(folder)
    marker.write_text(described)
    return folder


def _config(
    kind: Kind, geometry: QwenGeometry, tokenizer: Qwen2Tokenizer, dtype: torch.dtype
) -> dict[str, Any]:
    """``config.json`` as it is published: of Qwen2.5-VL flat, of Qwen3-VL nested."""
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
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    # Shares of time, height and width in a head's frequencies, as published.
    space = width // 2 * (6 if kind in _FLAT else 5) // 16
    section = [width // 2 - 2 * space, space, space]
    vision: dict[str, Any] = {
        "depth": geometry.vision_layers,
        "hidden_size": geometry.vision_width,
        "intermediate_size": 2 * geometry.vision_width,
        "num_heads": geometry.vision_heads,
        "out_hidden_size": geometry.llm_width,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    tokens = {
        f"{name.replace('pad', 'token')}_id"
        if name.endswith("pad")
        else f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in names
    }
    if kind == "qwen2_vl":
        return {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": kind,
            **text,
            **tokens,
            "rope_scaling": {"type": "mrope", "mrope_section": section},
            "vision_config": {
                "depth": geometry.vision_layers,
                "embed_dim": geometry.vision_width,
                "hidden_size": geometry.llm_width,
                "num_heads": geometry.vision_heads,
                "mlp_ratio": 2,
                "patch_size": 14,
                "in_chans": 3,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        }
    if kind == "qwen2_5_vl":
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": kind,
            **text,
            **tokens,
            "rope_scaling": {"type": "mrope", "mrope_section": section},
            "vision_config": {
                **vision,
                "patch_size": 14,
                "in_chans": 3,
                "window_size": 112,
                "fullatt_block_indexes": [1, geometry.vision_layers - 1],
                "tokens_per_second": 2,
                "hidden_act": "silu",
            },
        }
    experts: dict[str, Any] = {}
    if kind == "qwen3_vl_moe":
        experts = {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 3 * geometry.llm_mlp // 8,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        }
    return {
        "architectures": [f"Qwen3VL{'Moe' if experts else ''}ForConditionalGeneration"],
        "model_type": kind,
        **tokens,
        "tie_word_embeddings": False,
        "text_config": {
            **text,
            **experts,
            "model_type": f"{kind}_text",
            "head_dim": width,
            "attention_bias": False,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": section,
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            **vision,
            "model_type": kind,
            "patch_size": 16,
            "in_channels": 3,
            "num_position_embeddings": 48**2,
            "deepstack_visual_indexes": [1, 2],
            "hidden_act": "gelu_pytorch_tanh",
        },
    }


def _published(name: str, tensor: Tensor, kind: Kind) -> tuple[str, Tensor]:
    """Name and tensor as published files have what transformers 5 has."""
    if kind in _FLAT:
        name = name.replace("model.visual.", "visual.", 1)
        name = name.replace("model.language_model.", "model.", 1)
    elif ".experts." in name:
        tensor = tensor.transpose(1, 2)
    return name, tensor.contiguous().clone()


def _processor(kind: Kind, geometry: QwenGeometry, tokenizer: Qwen2Tokenizer) -> Any:
    patch = 14 if kind in _FLAT else 16
    cell = (2 * patch) ** 2
    size = {
        "shortest_edge": geometry.least_tokens * cell,
        "longest_edge": geometry.most_tokens * cell,
    }
    sizes: dict[str, Any] = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    if kind in _FLAT:
        built = Qwen2VLProcessor if kind == "qwen2_vl" else Qwen2_5_VLProcessor
        return built(
            Qwen2VLImageProcessor(size=size, **sizes),
            tokenizer,
            Qwen2VLVideoProcessor(size=size, **sizes),
            chat_template=QWEN_CHAT_TEMPLATE,
        )
    half = [0.5, 0.5, 0.5]
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=size, image_mean=half, image_std=half, **sizes),
        tokenizer,
        Qwen3VLVideoProcessor(size=size, **sizes),
        chat_template=QWEN_CHAT_TEMPLATE,
    )
