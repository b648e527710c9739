"""The CLIP that is trained: the mathematics of transformers' CLIPModel on image crops."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vllm_litelvlm.demo.checkpoint import Geometry
from vllm_litelvlm.demo.training.layers import ClipBlock, causal_mask

#: What OpenAI's CLIP subtracts from and divides by, of pixels from 0 to 1.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

#: How many text tokens CLIP reads.
TEXT_LENGTH = 77
#: The deviation at which the position embeddings start. At CLIP's own, 0.02, a small tower never
#: learns where a patch lies.
POSITION_DEVIATION = 0.5
#: The largest factor between cosine and logit.
_LARGEST_SCALE = 100.0


class VisionTower(nn.Module):
    """CLIP's vision tower on any square part of an image.

    ``geometry`` gives the sizes; the features are hidden state -2, as LLaVA-1.5 reads them.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        width, self.grid = geometry.vision_width, geometry.image_size // geometry.patch_size
        self.patch_embedding = nn.Linear(3 * geometry.patch_size**2, width, bias=False)
        self.class_embedding = nn.Parameter(0.02 * torch.randn(width))
        self.position_embedding = nn.Parameter(sine_positions(self.grid, width))
        self.pre_layrnorm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            ClipBlock(width, geometry.vision_heads) for _ in range(geometry.vision_layers)
        )
        self.post_layernorm = nn.LayerNorm(width)
        self.visual_projection = nn.Linear(width, geometry.projection, bias=False)
        scale = torch.tensor(PIXEL_DEVIATION) * 255
        self.factor: Tensor
        self.shift: Tensor
        for name, row in (("factor", 1 / scale), ("shift", torch.tensor(PIXEL_MEAN) * 255 / scale)):
            row = row.repeat_interleave(geometry.patch_size**2)
            self.register_buffer(name, row, persistent=False)

    def features(self, patches: Tensor, places: Tensor) -> Tensor:
        """Hidden state -2 with [CLS] first, [images, 1 + patches, width].

        Args:
            patches: uint8 [images, patches, 3 * patch size ** 2], channel by channel.
            places: int64 [images, patches], each patch's place in the whole image's grid.
        """
        x = patches.float() * self.factor - self.shift
        x = self.patch_embedding(x.to(self.patch_embedding.weight.dtype))
        x = x + F.embedding(places + 1, self.position_embedding)
        start = (self.class_embedding + self.position_embedding[0]).expand(len(x), 1, -1)
        hidden: Tensor = self.pre_layrnorm(torch.cat([start, x], dim=1))
        for layer in self.blocks[:-1]:
            hidden = layer(hidden)
        return hidden

    def embed(self, features: Tensor) -> Tensor:
        """From hidden state -2 to the image's place beside texts, [images, projection]."""
        first = torch.zeros(len(features), dtype=torch.long, device=features.device)
        x = self.blocks[-1](features, only=first).squeeze(1)
        embedded: Tensor = self.visual_projection(self.post_layernorm(x))
        return embedded

    @property
    def blocks(self) -> list[ClipBlock]:
        """The layers."""
        return cast(list[ClipBlock], list(self.layers))


class TextTower(nn.Module):
    """CLIP's text tower; what stands after the end token has no influence."""

    def __init__(self, geometry: Geometry, vocabulary: int) -> None:
        super().__init__()
        width = geometry.text_width
        self.token_embedding = nn.Parameter(0.02 * torch.randn(vocabulary, width))
        self.position_embedding = nn.Parameter(0.01 * torch.randn(TEXT_LENGTH, width))
        self.layers = nn.ModuleList(
            ClipBlock(width, geometry.text_heads) for _ in range(geometry.text_layers)
        )
        self.final_layer_norm = nn.LayerNorm(width)
        self.text_projection = nn.Linear(width, geometry.projection, bias=False)

    def forward(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """Texts' places beside images, [texts, projection].

        ``tokens`` int64 [texts, length], padded on the right; ``ends`` int64 [texts]: where each
        text's end token is.
        """
        x = F.embedding(tokens, self.token_embedding)
        x = x + self.position_embedding[: tokens.shape[1]]
        mask = causal_mask(tokens.shape[1], x)
        for layer in self.blocks[:-1]:
            x = layer(x, mask)
        x = self.blocks[-1](x, mask, only=ends).squeeze(1)
        embedded: Tensor = self.text_projection(self.final_layer_norm(x))
        return embedded

    @property
    def blocks(self) -> list[ClipBlock]:
        """The layers."""
        return cast(list[ClipBlock], list(self.layers))


class Clip(nn.Module):
    """Both towers and the factor between cosine and logit."""

    def __init__(self, geometry: Geometry, vocabulary: int) -> None:
        super().__init__()
        self.vision = VisionTower(geometry)
        self.text = TextTower(geometry, vocabulary)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.apply(_start_linear)
        for blocks in (self.vision.blocks, self.text.blocks):
            for layer in blocks:
                for last in (layer.out_proj, layer.fc2):
                    last.weight.data.mul_((2 * len(blocks)) ** -0.5)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scaled cosines of embeddings, float32 [images, texts]."""
        unit = F.normalize
        scale = self.logit_scale.float().exp().clamp(max=_LARGEST_SCALE)
        cosines: Tensor = unit(images.float(), dim=-1) @ unit(texts.float(), dim=-1).T
        return scale * cosines


def sine_positions(grid: int, width: int) -> Tensor:
    """Where the position embeddings start: sines of row and column, [1 + grid ** 2, width].

    A quarter of the width each for sine and cosine of the row and of the column, at wavelengths
    from 4 patches to 4 grids; deviation :data:`POSITION_DEVIATION`. The first, for [CLS], is 0.
    """
    count = width // 4
    waves = 2 * math.pi / (4.0 * grid ** torch.linspace(0, 1, count))
    angles = torch.arange(grid)[:, None] * waves
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None].expand(grid, grid, -1)
    table = torch.zeros(1 + grid**2, width)
    table[1:, : 4 * count] = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return table * (POSITION_DEVIATION * math.sqrt(2))


def _start_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
