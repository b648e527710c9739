"""Made-up signals and a made-up tower for tests of methods."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vllm_litelvlm.pruning.base import TEXT_SIGNALS, Signal, Signals

#: As many blocks as LLaVA runs of CLIP-L.
CLIP_LAYERS = 23


@dataclass(frozen=True)
class MadeUpTower:
    """A transformer with random weights that computes every image by itself.

    ``embedded`` [images, 1 + patches, width] is its first block's input; ``weights``
    [layers, 6, width, width] are its projections: query, key, value, output, and two of the
    feed-forward half. It computes in float64 for float64 inputs, and in float32 for all others.
    """

    embedded: Tensor
    weights: Tensor
    heads: int = 2

    @property
    def layers(self) -> int:
        return len(self.weights)

    def rows(self, images: Sequence[int]) -> "MadeUpTower":
        return dataclasses.replace(self, embedded=self.embedded[list(images)])

    def embed(self) -> Tensor:
        return self.embedded

    def attend(self, layer: int, hidden: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        assert sizes.dtype == torch.float32
        assert sizes.shape == hidden.shape[:2]
        images = [self._attend(layer, one, size) for one, size in zip(hidden, sizes, strict=True)]
        outputs, keys = (torch.stack(each) for each in zip(*images, strict=True))
        return hidden + outputs.to(hidden.dtype), keys

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        images = []
        for one in hidden:
            normed, weights = self._normed(layer, one)
            images.append(torch.tanh(normed @ weights[4]) @ weights[5])
        return hidden + torch.stack(images).to(hidden.dtype)

    def _attend(self, layer: int, hidden: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        normed, weights = self._normed(layer, hidden)
        tokens, width = normed.shape
        query, keys, values = (normed @ weights[:3]).view(3, tokens, self.heads, -1).unbind()
        head_width = width // self.heads
        logits = torch.einsum("qhw,khw->hqk", query, keys) / head_width**0.5
        probabilities = (logits + sizes.log().to(logits)).softmax(dim=-1)
        mixed = torch.einsum("hqk,khw->qhw", probabilities, values).reshape(tokens, width)
        return mixed @ weights[3], keys.mean(dim=1).float()

    def _normed(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        hidden = hidden.to(dtype)
        return F.layer_norm(hidden, hidden.shape[-1:]), self.weights[layer].to(dtype)


def made_up_tower(
    images: int,
    patches: int = 576,
    seed: int = 0,
    width: int = 8,
    layers: int = CLIP_LAYERS,
    dtype: torch.dtype = torch.float32,
) -> MadeUpTower:
    """A tower whose images and weights are drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return MadeUpTower(
        embedded=torch.randn(images, 1 + patches, width, generator=generator).to(dtype),
        weights=torch.randn(layers, 6, width, width, generator=generator) / width**0.5,
    )


def random_signals(
    text_counts: Sequence[int],
    patches: int = 576,
    seed: int = 0,
    width: int = 8,
    dtype: torch.dtype = torch.float32,
    layers: int = CLIP_LAYERS,
) -> Signals:
    """Every signal, drawn at random; padding rows of text signals would win if they were read."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = len(text_counts), max(text_counts)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, *shape, generator=generator)

    similarity, cosine = normal(texts, patches), torch.tanh(normal(texts, patches))
    for image, count in enumerate(text_counts):
        similarity[image, count:] = torch.arange(patches) * 100.0 - 1e6
        cosine[image, count:] = torch.arange(patches) * 100.0 - 1e6
    values = {
        Signal.FEATURES: normal(1 + patches, width).to(dtype),
        Signal.PROJECTED: normal(patches, 2 * width).to(dtype),
        Signal.SIMILARITY: similarity,
        Signal.COSINE: cosine,
        Signal.CONTEXT: normal(patches).abs(),
        Signal.CONTEXT_NORMALISED: normal(patches).abs(),
        Signal.CLS_ATTENTION: normal(1 + patches).softmax(dim=-1)[:, 1:],
        Signal.KEYS: normal(patches, width),
        Signal.LAST_ATTENTION: normal(1 + patches).softmax(dim=-1)[:, 1:],
        Signal.LAST_KEYS: normal(patches, width),
    }
    value = normal(texts, patches)
    for image, count in enumerate(text_counts):
        value[image, count:] = 1e6 - torch.arange(patches) * 100.0
    values[Signal.VALUE] = value
    word_counts = [max(0, 2 * count - 1) for count in text_counts]  # 0, 1, 3, ...
    token_cosine, word_cosine = (torch.tanh(normal(rows, patches)) for rows in (texts, 2 * texts))
    for image, count in enumerate(text_counts):
        token_cosine[image, count:] = 1e6 - torch.arange(patches) * 100.0
        word_cosine[image, word_counts[image] :] = torch.arange(patches) * 100.0 - 1e6
    values |= {Signal.TOKEN_COSINE: token_cosine, Signal.WORD_COSINE: word_cosine}
    return Signals(
        images=images,
        patches=patches,
        device=torch.device("cpu"),
        text_counts=list(text_counts),
        values=values,
        tower=made_up_tower(images, patches, seed, width, layers, dtype),
        word_counts=word_counts,
    )


def with_values(signals: Signals, values: dict[Signal, Tensor]) -> Signals:
    """The same signals with some replaced."""
    return dataclasses.replace(signals, values={**signals.values, **values})


def without_padding(signals: Signals, image: int) -> Signals:
    """One image of a batch as it is when it comes alone: without rows for others' texts."""
    alone, texts = signals.rows([image]), signals.text_counts[image]
    own = {signal: alone[signal][:, :texts].clone() for signal in TEXT_SIGNALS}
    words = signals.word_counts[image]
    own[Signal.WORD_COSINE] = alone[Signal.WORD_COSINE][:, :words].clone()
    return with_values(alone, own)
