"""Builds checkpoints of Qwen-VLs in the published layouts, with random weights.

The language model answers nonsense; the rest is as with published weights: the file layout,
configuration and tensor names of ``Qwen/Qwen2.5-VL-7B-Instruct``, ``Qwen/Qwen3-VL-8B-Instruct`` and
``Qwen/Qwen3.5-9B``.
"""

import json
from pathlib import Path
from typing import Any

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
from vllm_litelvlm.demo.qwen_config import FLAT, TINY_QWEN, Kind, QwenGeometry, published_config
from vllm_litelvlm.demo.vocabularies import QWEN_CHAT_TEMPLATE, qwen_tokenizer


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
    config = published_config(kind, geometry, tokenizer, str(dtype).removeprefix("torch."))
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


def _published(name: str, tensor: Tensor, kind: Kind) -> tuple[str, Tensor]:
    """Name and tensor as published files have what transformers 5 has."""
    if kind in FLAT:
        name = name.replace("model.visual.", "visual.", 1)
        name = name.replace("model.language_model.", "model.", 1)
    elif kind == "qwen3_vl_moe" and ".experts." in name:
        tensor = tensor.transpose(1, 2)
    return name, tensor.contiguous().clone()


def _processor(kind: Kind, geometry: QwenGeometry, tokenizer: Qwen2Tokenizer) -> Any:
    patch = 14 if kind in FLAT else 16
    cell = (2 * patch) ** 2
    size = {
        "shortest_edge": geometry.least_tokens * cell,
        "longest_edge": geometry.most_tokens * cell,
    }
    sizes: dict[str, Any] = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    if kind in FLAT:
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
