"""The LLaVA that is trained: projector and Llama, with many questions behind one image.

The image's tokens come first and do not see the questions, so they are read once. Each question
sees them and itself only, and its positions go on where the image ends, exactly as if it stood
there alone.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vllm_litelvlm.demo.checkpoint import Geometry
from vllm_litelvlm.demo.training.layers import RmsNorm, attend_causally, causal_mask

#: The base of Llama's rotary positions.
_ROTARY_BASE = 10000.0
#: The deviation at which embeddings start: about what a layer adds to them.
_EMBEDDING_DEVIATION = 0.3
#: Directions with less than this share of the largest variance are not blown up to the same size.
_LEAST_VARIANCE = 1e-4

#: The rotated keys and the values of one layer, each [images, heads, tokens, head width].
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Memory:
    """What questions see of the image: every layer's keys and values, and how many tokens.

    ``end`` is the position at which questions go on.
    """

    layers: list[KeysValues]
    length: int
    end: int


class LlamaBlock(nn.Module):
    """One layer of Llama; queries, keys and values are one product, gate and up another."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.input_layernorm = RmsNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.post_attention_layernorm = RmsNorm(width)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)
        self.down_proj = nn.Linear(mlp, width, bias=False)

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (scaled), rotated keys and values, [..., heads, tokens, head width].

        ``x`` is [..., tokens, width]; ``turn`` cosines and sines, [tokens, head width].
        """
        packed = self.qkv(self.input_layernorm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.transpose(-4, -2).unbind(-3)
        return rotate(query, turn) * query.shape[-1] ** -0.5, rotate(key, turn), value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output from its input and what the heads mixed."""
        x = x + self.o_proj(mixed.transpose(-3, -2).flatten(-2))
        gate, up = self.gate_up(self.post_attention_layernorm(x)).chunk(2, dim=-1)
        out: Tensor = x + self.down_proj(F.silu(gate) * up)
        return out


class Llava(nn.Module):
    """Projector and language model; the vision tower's features are its input."""

    def __init__(self, geometry: Geometry, vocabulary: int) -> None:
        super().__init__()
        width = geometry.llm_width
        self.head_width = width // geometry.llm_heads
        self.linear_1 = nn.Linear(geometry.vision_width, width)
        self.linear_2 = nn.Linear(width, width)
        self.embed_tokens = nn.Parameter(_EMBEDDING_DEVIATION * torch.randn(vocabulary, width))
        self.layers = nn.ModuleList(
            LlamaBlock(width, geometry.llm_heads, geometry.llm_mlp)
            for _ in range(geometry.llm_layers)
        )
        self.norm = RmsNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.7 * module.in_features**-0.5)
        for layer in self.blocks:
            for last in (layer.o_proj, layer.down_proj):
                last.weight.data.mul_((2 * len(self.layers)) ** -0.5)

    @torch.no_grad()
    def whiten(self, features: Tensor) -> None:
        """Start the first projector layer as a whitening of features, float32 [rows, width]."""
        mean = features.mean(dim=0)
        centred = (features - mean).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(features))
        scale = values.clamp(min=_LEAST_VARIANCE * float(values.max())) ** -0.5
        shape = self.linear_1.weight.shape
        turn = torch.linalg.qr(torch.randn(max(shape), max(shape), dtype=torch.float64))[0]
        turn = turn[: shape[0], : shape[1]].to(vectors)
        weight = turn @ (vectors * scale) @ vectors.T
        self.linear_1.weight.copy_(weight)
        self.linear_1.bias.copy_(-(weight @ mean.to(weight)))

    def project(self, features: Tensor) -> Tensor:
        """Features of patches as input of the language model."""
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        return projected

    def read(
        self, features: Tensor, prefix: Tensor, places: Tensor | None = None, span: int = 0
    ) -> Memory:
        """Run the language model on the image and the text before it.

        Args:
            features: [images, patches, vision width].
            prefix: int64 [tokens]: the text before the image.
            places: int64 [images, patches]: at which of an image's ``span`` positions each stands,
                where others were left out; None where they are all.
        """
        images = self.project(features)
        before = F.embedding(prefix, self.embed_tokens).expand(len(images), -1, -1)
        x = torch.cat([before, images], dim=1)
        length = x.shape[1]
        if places is None:
            end, turn = length, self.turns(0, length, x)
        else:
            end = len(prefix) + span
            first = torch.arange(len(prefix), device=x.device).expand(len(x), -1)
            kept = torch.cat([first, len(prefix) + places], dim=1)
            turn = rotary(kept[:, None], self.head_width, x)  # of all heads
        layers = []
        for number, layer in enumerate(self.blocks):
            query, key, value = layer.project(x, turn)
            layers.append((key, value))
            if number + 1 < len(self.blocks):  # of the last layer, questions see keys and values
                x = layer.finish(x, attend_causally(query, key, value))
        return Memory(layers, length, end)

    def answer(self, memory: Memory, tokens: Tensor) -> Tensor:
        """Hidden states of questions' tokens, [images, questions, length, width].

        ``tokens`` int64 [images, questions, length], padded on the right.
        """
        images, questions, length = tokens.shape
        x = F.embedding(tokens, self.embed_tokens)
        turn = self.turns(memory.end, length, x)
        mask = causal_mask(length, x)
        for layer, (seen_keys, seen_values) in zip(self.blocks, memory.layers, strict=True):
            query, key, value = layer.project(x, turn)
            heads = query.shape[2]
            flat = query.transpose(1, 2).reshape(images, heads, questions * length, -1)
            far = (flat @ seen_keys.transpose(-1, -2)).unflatten(2, (questions, length))
            near = (query @ key.transpose(-1, -2) + mask).transpose(1, 2)
            shares = torch.cat([far, near], dim=-1).softmax(dim=-1)
            far, near = shares.split([memory.length, length], dim=-1)
            mixed = (far.flatten(2, 3) @ seen_values).unflatten(2, (questions, length))
            mixed = mixed.transpose(1, 2) + near.transpose(1, 2) @ value
            x = layer.finish(x, mixed)
        out: Tensor = self.norm(x)
        return out

    @property
    def blocks(self) -> list[LlamaBlock]:
        """The layers."""
        return cast(list[LlamaBlock], list(self.layers))

    def turns(self, start: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of ``count`` positions from ``start``, [count, head width] each."""
        return rotary(torch.arange(start, start + count, device=like.device), self.head_width, like)


def rotary(positions: Tensor, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (of the first half negated) of Llama's rotary positions, as ``like``.

    ``positions`` int64 [...]; [..., width] each.
    """
    steps = torch.arange(0, width, 2, device=like.device).float() / width
    angles = positions[..., None].float() * (1.0 / _ROTARY_BASE**steps)
    cosines, sines = angles.cos(), angles.sin()
    pair = torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)
    return pair[0].to(like.dtype), pair[1].to(like.dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions applied to the last axis, its halves as pairs."""
    cosines, sines = turn
    return x * cosines + x.roll(x.shape[-1] // 2, dims=-1) * sines
