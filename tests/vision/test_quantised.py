"""Quantised tensors of a tower are read as the numbers that they stand for, or refused by name."""

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor

from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.vision.quantised import dequantised

MODULE = "vision_model.encoder.layers.3.self_attn.v_proj"


def compressed(
    weight: Tensor, form: str, target: str = "Linear", **weights: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a module as compressed-tensors stores them, and the configuration."""
    group = {"targets": [target], "weights": {"type": "int", "symmetric": True, **weights}}
    scheme = QuantizationScheme.model_validate(group)
    size = scheme.weights.group_size or weight.shape[1]
    largest = weight.unflatten(1, (-1, size)).abs().amax(dim=-1)
    steps = 448.0 if weights.get("type") == "float" else 2 ** (weights["num_bits"] - 1) - 1
    state = {"weight": weight, "weight_scale": largest / steps}
    parts = BaseCompressor.get_value_from_registry(form).compress(state, scheme)
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
    }
    return {f"{MODULE}.{kind}": part for kind, part in parts.items()}, config


@pytest.mark.parametrize(
    ("form", "weights", "error"),
    [
        ("int-quantized", {"num_bits": 8, "strategy": "channel"}, 0.01),
        ("naive-quantized", {"num_bits": 8, "strategy": "channel"}, 0.01),
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, 0.08),
        ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32}, 0.01),
        ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, 0.15),
    ],
)
@pytest.mark.parametrize("target", ["Linear", "re:.*vision_tower.*v_proj", "re:model.vision.*"])
def test_formats_of_compressed_tensors_are_read(
    form: str, weights: dict[str, Any], error: float, target: str
) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    tensors, config = compressed(weight, form, target, **weights)
    tensors[f"{MODULE}.bias"] = torch.arange(64.0)
    found = dequantised(tensors, config)
    assert sorted(found) == [f"{MODULE}.bias", f"{MODULE}.weight"]
    assert torch.equal(found[f"{MODULE}.bias"], torch.arange(64.0))
    largest = weight.abs().max()
    assert (found[f"{MODULE}.weight"] - weight).abs().max() < error * largest
    assert found[f"{MODULE}.weight"].is_floating_point()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_tensors_stay_as_they_are_in_a_quantised_model_too(dtype: torch.dtype) -> None:
    tensors = {
        f"{MODULE}.weight": torch.randn(4, 4).to(dtype),
        "visual_projection.weight": torch.ones(2),
    }
    for quantization in (None, {"quant_method": "awq"}):
        found = dequantised(tensors, quantization)
        assert found.keys() == tensors.keys()
        assert all(found[name] is tensors[name] for name in tensors)


@pytest.mark.parametrize(
    ("quantization", "parts"),
    [
        ({"quant_method": "awq"}, ("qweight", "qzeros", "scales")),
        ({"quant_method": "gptq"}, ("qweight", "g_idx", "scales")),
        ({"quant_method": "bitsandbytes"}, ("weight", "weight.absmax")),
        (None, ("weight",)),
    ],
)
def test_formats_that_cannot_be_read_are_refused_by_name(
    quantization: dict[str, Any] | None, parts: tuple[str, ...]
) -> None:
    tensors = {f"{MODULE}.{part}": torch.ones(4, 4, dtype=torch.uint8) for part in parts}
    name = repr(str(quantization["quant_method"])) if quantization else "'None'"
    with pytest.raises(WeightsError, match=rf"'{MODULE}' of the .* is quantised by {name}, which"):
        dequantised(tensors, quantization)


@pytest.mark.parametrize("fault", ["no scale", "no group", "no such format"])
def test_what_compressed_tensors_cannot_read_is_told_with_what_is_there(fault: str) -> None:
    tensors, config = compressed(
        torch.randn(8, 8),
        "int-quantized",
        "re:.*language_model.*" if fault == "no group" else "Linear",
        num_bits=8,
        strategy="channel",
    )
    if fault == "no scale":
        del tensors[f"{MODULE}.weight_scale"]
    if fault == "no such format":
        config["format"] = "knitted"
    with pytest.raises(WeightsError, match=rf"'{MODULE}' .* in the format .*: it has .*weight"):
        dequantised(tensors, config)
