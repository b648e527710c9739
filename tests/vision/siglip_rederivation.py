"""What methods go by with a SigLIP, in plain transformers and double precision.

Nothing of the package is used: the SigLIP runs whole, attention maps are its own, and what is said
of patches is said patch by patch and head by head.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel


class SlowSiglip:
    """The SigLIP of a folder."""

    def __init__(self, folder: Path) -> None:
        model = SiglipModel.from_pretrained(folder, attn_implementation="eager")
        self.model = model.double().eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)

    def pixels(self, image: Image.Image) -> Tensor:
        return self.processor(image, return_tensors="pt")["pixel_values"].double()

    @torch.no_grad()
    def see(self, image: Image.Image, pixels: Tensor | None = None) -> dict[str, Tensor]:
        """Every image signal by its name, and ``hidden``, hidden state -2; one image's."""
        vision = self.model.vision_model
        pixels = self.pixels(image) if pixels is None else pixels.double()
        made = vision(pixels, output_hidden_states=True, output_attentions=True)
        hidden, last = made.hidden_states[-2][0], vision.encoder.layers[-1]
        attention = last.self_attn
        normed = last.layer_norm1(hidden)
        query, keys = attention.q_proj(normed), attention.k_proj(normed)
        width = keys.shape[-1]
        heads = keys.split(attention.head_dim, dim=-1)
        whole = torch.softmax(query @ keys.T / width**0.5, dim=-1)
        late = made.last_hidden_state[0]
        pooling = vision.head.attention
        pool_query, pool_keys, pool_values = (
            tokens @ weight.T + bias
            for tokens, weight, bias in zip(
                (vision.head.probe[0, 0], late, late),
                pooling.in_proj_weight.split(width),
                pooling.in_proj_bias.split(width),
                strict=True,
            )
        )
        assert torch.allclose(vision.head(late[None])[0], made.pooler_output[0])
        return {
            "hidden": hidden,
            "feature_input": made.hidden_states[-3][0],
            "late": late,
            # What a patch gets from all patches, its own share among it.
            "cls_attention": sum(map_.mean(dim=0) for map_ in made.attentions[-1][0]) / len(heads),
            "keys": sum(heads) / len(heads),
            "last_attention": whole.mean(dim=0),
            "last_keys": keys,
            "context": _contributions(pool_query, pool_keys, pool_values, width),
            "context_normalised": _contributions(
                pool_query / pool_query.norm(),
                pool_keys / pool_keys.norm(dim=-1, keepdim=True),
                pool_values,
                width,
            ),
        }

    @torch.no_grad()
    def compare(self, seen: dict[str, Tensor], texts: Sequence[str]) -> dict[str, Tensor]:
        """Every text signal by its name, [texts, patches]."""
        vision = self.model.vision_model
        aligned = vision.post_layernorm(seen["hidden"])
        alone = torch.cat([vision.head(patch[None, None]) for patch in seen["late"]])
        means = [self.mean_embedding(text) for text in texts]
        return {
            "similarity": torch.stack([aligned @ mean for mean in means]),
            "cosine": torch.stack(
                [torch.cosine_similarity(aligned, mean[None], dim=-1) for mean in means]
            ),
            "value": torch.stack([alone @ self.trained_embedding(text) for text in texts]),
        }

    def ids(self, text: str) -> Tensor:
        return self.tokenizer(
            text.lower(), padding="max_length", truncation=True, max_length=64, return_tensors="pt"
        )["input_ids"]

    def mean_embedding(self, text: str) -> Tensor:
        return self.token_embeddings(text).mean(dim=0)

    def token_embeddings(self, text: str) -> Tensor:
        """Of the words alone, with neither the end token nor what pads."""
        words = len(self.tokenizer(text.lower(), add_special_tokens=False)["input_ids"])
        states = self.model.text_model(self.ids(text)).last_hidden_state[0, : min(words, 63)]
        return torch.stack([self.model.text_model.head(state) for state in states])

    def trained_embedding(self, text: str) -> Tensor:
        return self.model.get_text_features(self.ids(text)).pooler_output[0]


def _contributions(query: Tensor, keys: Tensor, values: Tensor, width: int) -> Tensor:
    """Equation 5, patch by patch."""
    weights = torch.softmax(torch.stack([key @ query for key in keys]) / width**0.5, dim=0)
    return torch.stack(
        [(weight * value).norm() for weight, value in zip(weights, values, strict=True)]
    )
