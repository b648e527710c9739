"""Masks derived once more, slowly: SAM's own code in float64, and resizing written by hand.

The mask decoder follows the original SAM's source (``modeling/mask_decoder.py``,
``modeling/transformer.py``), one prompt at a time; the vision encoder is transformers', eager.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import SamImageProcessorPil, SamModel

#: Of LayerNorms that the original builds as nn.LayerNorm(width), and of its LayerNorm2d.
EPSILON, EPSILON_2D = 1e-5, 1e-6


@dataclass(frozen=True)
class Slow:
    """A SAM in float64."""

    model: SamModel
    processor: Any

    @classmethod
    def load(cls, model: str) -> "Slow":
        sam = SamModel.from_pretrained(Path(model) / "sam", attn_implementation="eager")
        return cls(sam.double().eval(), SamImageProcessorPil.from_pretrained(Path(model) / "sam"))

    def features(self, picture: Image.Image) -> Tensor:
        pixels = self.processor(picture, return_tensors="pt")["pixel_values"].double()
        with torch.no_grad():
            return self.model.vision_encoder(pixels).last_hidden_state

    def logits(self, features: Tensor, prompt: Tensor) -> tuple[Tensor, float]:
        """Of one prompt [width]: low resolution logits [4 grid, 4 grid], and the guessed IoU."""
        with torch.no_grad():
            return decoded(self.model, features[0], prompt.double())

    def resized(self, logits: Tensor, size: tuple[int, int]) -> NDArray[np.float64]:
        """To a picture of this width and height."""
        width, height = size
        side = self.processor.pad_size["height"]
        scale = side / max(size)
        square = bilinear(logits.numpy(), side, side)
        inside = square[: int(height * scale + 0.5), : int(width * scale + 0.5)]
        return bilinear(inside, height, width)


def bilinear(values: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Every result from its place between the centres of four values."""

    def places(length: int, wanted: int) -> tuple[NDArray[np.int64], Any, NDArray[np.float64]]:
        place = ((np.arange(wanted) + 0.5) * length / wanted - 0.5).clip(0, length - 1)
        before = np.floor(place).astype(int)
        return before, np.minimum(before + 1, length - 1), place - before

    (top, bottom, down), (left, right, across) = (
        places(length, wanted) for length, wanted in zip(values.shape, (height, width), strict=True)
    )
    rows = values[top] * (1 - down)[:, None] + values[bottom] * down[:, None]
    return rows[:, left] * (1 - across) + rows[:, right] * across


def decoded(model: SamModel, features: Tensor, prompt: Tensor) -> tuple[Tensor, float]:
    """The original's ``MaskDecoder.predict_masks`` for features [width, grid, grid]."""
    weights = model.mask_decoder.state_dict()
    width, grid, _ = features.shape
    heads = model.config.mask_decoder_config.num_attention_heads

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, values: Tensor, epsilon: float = EPSILON) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = []
        projected = (
            linear(f"{name}.{kind}_proj", values)
            for kind, values in (("q", query), ("k", key), ("v", value))
        )
        for q, k, v in zip(*(each.chunk(heads, -1) for each in projected), strict=True):
            scores = q @ k.T / q.shape[-1] ** 0.5
            parts.append(scores.softmax(-1) @ v)
        return linear(f"{name}.out_proj", torch.cat(parts, -1))

    def perceptron(name: str, values: Tensor) -> Tensor:
        for layer in ("proj_in", "layers.0"):
            values = linear(f"{name}.{layer}", values).relu()
        return linear(f"{name}.proj_out", values)

    tokens = torch.cat([weights["iou_token.weight"], weights["mask_tokens.weight"], prompt[None]])
    no_mask = model.prompt_encoder.no_mask_embed.weight[0]
    image = (features + no_mask[:, None, None]).flatten(1).T  # [cells, width]
    centres = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid * 2 - 1
    at = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).reshape(-1, 2)
    angles = 2 * torch.pi * at @ model.shared_image_embedding.positional_embedding
    place = torch.cat([angles.sin(), angles.cos()], -1)

    state = tokens
    for number in range(model.config.mask_decoder_config.num_hidden_layers):
        name = f"transformer.layers.{number}"
        if number == 0:
            state = attention(f"{name}.self_attn", state, state, state)
        else:
            with_tokens = state + tokens
            state = state + attention(f"{name}.self_attn", with_tokens, with_tokens, state)
        state = norm(f"{name}.layer_norm1", state)
        cross = f"{name}.cross_attn_token_to_image"
        state = state + attention(cross, state + tokens, image + place, image)
        state = norm(f"{name}.layer_norm2", state)
        state = state + linear(f"{name}.mlp.lin2", linear(f"{name}.mlp.lin1", state).relu())
        state = norm(f"{name}.layer_norm3", state)
        cross = f"{name}.cross_attn_image_to_token"
        image = image + attention(cross, image + place, state + tokens, state)
        image = norm(f"{name}.layer_norm4", image)
    cross = "transformer.final_attn_token_to_image"
    state = state + attention(cross, state + tokens, image + place, image)
    state = norm("transformer.layer_norm_final_attn", state)

    maps = image.T.reshape(1, width, grid, grid)
    for number in (1, 2):
        kernel, bias = (weights[f"upscale_conv{number}.{kind}"] for kind in ("weight", "bias"))
        maps = F.conv_transpose2d(maps, kernel, bias, stride=2)
        if number == 1:
            maps = norm("upscale_layer_norm", maps.movedim(1, -1), EPSILON_2D).movedim(-1, 1)
        maps = F.gelu(maps)
    reader = perceptron("output_hypernetworks_mlps.0", state[1])
    logits = torch.einsum("c,chw->hw", reader, maps[0])
    return logits, perceptron("iou_prediction_head", state[0])[0].item()
