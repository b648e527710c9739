"""A LoRA adapter for a test checkpoint, and the checkpoint with the adapter in its weights."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RANK = 4


def write_adapter(folder: Path, model: Path) -> Path:
    """One in PEFT's format on the query projections of the language model of a folder."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, weight in _query_projections(load_file(model / "model.safetensors")).items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        out, into = weight.shape
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(_RANK, into, generator=generator)
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, _RANK, generator=generator) / 4
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "r": _RANK,
        "lora_alpha": _RANK,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder


def lora_arguments(adapter: Path) -> list[str]:
    """Serve it as the model "adapter".

    With a place more than there are adapters: on a CPU vLLM's kernel gives what lies in the last
    one to requests without an adapter that share a step with one that has some.
    """
    places = ["--enable-lora", "--max-lora-rank=8", "--max-loras=2"]
    return [*places, "--lora-modules", f"adapter={adapter}"]


def merge_adapter(model: Path, adapter: Path, folder: Path) -> Path:
    """A copy of the model whose weights are those that the adapter makes of them."""
    shutil.copytree(model, folder)
    tensors = load_file(model / "model.safetensors")
    added = load_file(adapter / "adapter_model.safetensors")
    for name in _query_projections(tensors):
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        change = added[f"{prefix}.lora_B.weight"] @ added[f"{prefix}.lora_A.weight"]
        tensors[name] = tensors[name] + change
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _query_projections(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the checkpoint's file."""
    found = {
        name: tensor
        for name, tensor in tensors.items()
        if name.endswith("self_attn.q_proj.weight") and "vision" not in name
    }
    assert found
    return found
