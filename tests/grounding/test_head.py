"""The projection, its names, and what is said where it is not there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vllm_litelvlm.demo.checkpoint import Checkpoint
from vllm_litelvlm.errors import WeightsError
from vllm_litelvlm.grounding.head import TextProjection, read_projection


def test_projection_is_linear_relu_linear_in_float32(model: str) -> None:
    stored = {
        name.removeprefix("text_hidden_fcs.0."): tensor.double().numpy()
        for name, tensor in load_file(Path(model) / "model.safetensors").items()
        if name.startswith("text_hidden_fcs.")
    }
    assert sorted(stored) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    hidden = np.maximum(states.double().numpy() @ stored["0.weight"].T + stored["0.bias"], 0)
    expected = hidden @ stored["2.weight"].T + stored["2.bias"]
    projection = read_projection(model)
    prompts = projection(states)
    assert prompts.dtype == torch.float32
    np.testing.assert_allclose(prompts.numpy(), expected, atol=1e-4)
    assert not prompts.requires_grad
    half = projection.to(torch.bfloat16)(states)
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half.numpy(), expected, atol=0.2)
    projection.to(torch.float32)


def test_projection_in_a_model_has_the_names_of_the_layout() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text_hidden_fcs = TextProjection(8)

    shapes = {name: list(tensor.shape) for name, tensor in Model().named_parameters()}
    assert shapes == {
        "text_hidden_fcs.0.0.weight": [8, 8],
        "text_hidden_fcs.0.0.bias": [8],
        "text_hidden_fcs.0.2.weight": [256, 8],
        "text_hidden_fcs.0.2.bias": [256],
    }


def test_projection_is_read_from_whichever_file_has_it(model: str, tmp_path: Path) -> None:
    tensors = load_file(Path(model) / "model.safetensors")
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        part = {name: tensors[name].to(torch.bfloat16) for name in names}
        save_file(part, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    read = read_projection(str(tmp_path))
    assert all(tensor.dtype == torch.bfloat16 for tensor in read.parameters())
    assert torch.equal(read[0][2].bias.float(), tensors["text_hidden_fcs.0.2.bias"].bfloat16())


def test_missing_and_misshapen_tensors_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for place in (str(checkpoint.llava), str(tmp_path)):
        with pytest.raises(WeightsError, match=r"'text_hidden_fcs\.0\.0\.weight' is not in"):
            read_projection(place)
    with pytest.raises(WeightsError, match="The weights of 'nobody/has-this' cannot be read"):
        read_projection("nobody/has-this")
    tensors = {
        f"text_hidden_fcs.{name}": tensor for name, tensor in TextProjection(8).state_dict().items()
    }
    tensors["text_hidden_fcs.0.2.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"0\.2\.bias'.* has shape \[7\]; expected \[256\]"):
        read_projection(str(tmp_path))
