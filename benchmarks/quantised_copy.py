"""A LLaVA's checkpoint with its linear layers quantised, as compressed-tensors writes it.

Rounded to the nearest, without calibration: what the format costs at worst.
"""

import json
from pathlib import Path
from shutil import copytree
from typing import Any, Literal

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

Form = Literal["int8", "int4"]

_WEIGHTS: dict[Form, dict[str, Any]] = {
    "int8": {"num_bits": 8, "strategy": "channel"},
    "int4": {"num_bits": 4, "strategy": "group", "group_size": 32},
}
_FORMATS: dict[Form, str] = {"int8": "int-quantized", "int4": "pack-quantized"}
_TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
#: What stays as it is, beside embeddings, norms and biases.
_LEFT = ("lm_head", "multi_modal_projector")


def quantised_copy(llava: Path, folder: Path, form: Form, rounded: bool = False) -> Path:
    """Write the copy, and return its folder.

    Args:
        llava: a folder with one ``model.safetensors``.
        folder: does not exist yet.
        form: ``int8`` is W8A8, weights by channel and activations by token; ``int4`` is W4A16, in
            groups of 32.
        rounded: whether the weights are written as the floating-point numbers that they stand for:
            a plain checkpoint with the same rounding, for where vLLM has no kernel for the form.
    """
    copytree(llava, folder)
    group = {
        "targets": ["Linear"],
        "weights": {"type": "int", "symmetric": True, **_WEIGHTS[form]},
        "input_activations": _TOKENS if form == "int8" else None,
    }
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme.model_validate(group)},
        format=_FORMATS[form],
        quantization_status="compressed",
        ignore=[f"re:.*{name}.*" for name in _LEFT],
    )
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        linear = name.endswith(".weight") and tensor.dim() == 2 and "embed" not in name
        if not linear or any(part in name for part in _LEFT):
            tensors[name] = tensor
            continue
        module = name.removesuffix(".weight")
        parts = _quantised(tensor, config)
        if rounded:
            tensors[name] = _decompressed(parts, config).to(tensor.dtype)
            continue
        for kind, part in parts.items():
            tensors[f"{module}.{kind}"] = part.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if rounded:
        return folder
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"] = config.model_dump(mode="json", exclude_none=True)
    (folder / "config.json").write_text(json.dumps(described, indent=2))
    return folder


def _quantised(weight: Tensor, config: QuantizationConfig) -> dict[str, Tensor]:
    scheme = config.config_groups["group_0"]
    size = scheme.weights.group_size or weight.shape[1]
    largest = weight.float().unflatten(1, (-1, size)).abs().amax(dim=-1)
    scale = (largest / (2 ** (scheme.weights.num_bits - 1) - 1)).clamp(min=1e-8)
    state = {"weight": weight.float(), "weight_scale": scale}
    compressed = BaseCompressor.get_value_from_registry(config.format).compress(state, scheme)
    compressed["weight_scale"] = scale.to(torch.bfloat16)
    return dict(compressed)


def _decompressed(parts: dict[str, Tensor], config: QuantizationConfig) -> Tensor:
    compressor = BaseCompressor.get_value_from_registry(config.format)
    weight: Tensor = compressor.decompress(parts, config.config_groups["group_0"])["weight"]
    return weight
