"""A LoRA adapter for the test checkpoint."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from vllm_litelvlm.demo.checkpoint import Checkpoint


def write_adapter(folder: Path, checkpoint: Checkpoint) -> Path:
    """A LoRA adapter in PEFT's format on the language model's query projections."""
    config = json.loads((checkpoint.llava / "config.json").read_text())["text_config"]
    width, rank = config["hidden_size"], 4
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"base_model.model.language_model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(width, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder
