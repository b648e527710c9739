"""Quantised tensors of a checkpoint as the numbers that they stand for."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.utils.match import is_match
from torch import Tensor, nn

from vllm_litelvlm.errors import WeightsError

_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_READABLE = "compressed-tensors"
#: What is no linear layer's weight, SigLIP's pooling among it.
_NEVER_QUANTISED = frozenset({"bias", "in_proj_weight", "in_proj_bias", "probe"})


def dequantised(
    tensors: Mapping[str, Tensor], quantization: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    """Weights and biases in floating point.

    Args:
        tensors: all tensors of some modules of a vision tower, by the names of a CLIP checkpoint;
            of a quantised module scales and the like are among them.
        quantization: the ``quantization_config`` of the model's ``config.json``.

    Returns:
        name to tensor, plain ones as they are.

    Raises WeightsError naming the module and the format where that cannot be read.
    """
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        modules[module][kind] = tensor
    plain = {}
    for module, parts in modules.items():
        for kind in _NEVER_QUANTISED & parts.keys():
            plain[f"{module}.{kind}"] = parts.pop(kind)
        if parts:
            plain[f"{module}.weight"] = _weight(module, parts, quantization)
    return plain


def _weight(
    module: str, parts: dict[str, Tensor], quantization: Mapping[str, Any] | None
) -> Tensor:
    weight = parts.get("weight")
    if weight is not None and weight.dtype in _PLAIN and "weight_scale" not in parts:
        return weight
    method = (quantization or {}).get("quant_method")
    if quantization is None or method != _READABLE:
        raise WeightsError(
            f"{_of(module)} is quantised by {str(method)!r}, which litelvlm cannot read; it reads "
            f"{_READABLE!r}. Leave the vision tower unquantised, or serve without --plugin "
            "litelvlm."
        )
    config = QuantizationConfig.model_validate(dict(quantization))
    scheme = _scheme(module, config)
    form = str((scheme.format if scheme is not None else None) or config.format)
    try:
        assert scheme is not None, "no group of its quantization_config has it"
        scales = {
            kind: part.float() if part.dtype in _PLAIN else part for kind, part in parts.items()
        }
        compressor = BaseCompressor.get_value_from_registry(form)
        found: Tensor = compressor.decompress(scales, scheme)["weight"]
    except (AssertionError, AttributeError, KeyError, NotImplementedError, TypeError) as error:
        raise WeightsError(
            f"{_of(module)} is quantised by {_READABLE!r} in the format {form!r}, which cannot be "
            f"read: it has {', '.join(sorted(parts))} ({error})."
        ) from error
    return found


def _scheme(module: str, config: QuantizationConfig) -> QuantizationScheme | None:
    """The scheme of a linear layer of the tower."""
    linear = nn.Linear(1, 1)
    for scheme in config.config_groups.values():
        for prefix in ("vision_tower.", "model.vision_tower."):
            if is_match(f"{prefix}{module}", linear, scheme.targets):
                return scheme
    return None


def _of(module: str) -> str:
    return f"{module!r} of the model's vision tower"
