"""CDPruner: tokens that are diverse, and relevant to the text."""

import itertools
from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, keep, shared_among
from vllm_litelvlm.pruning.centred import CENTRED, centred, rarity
from vllm_litelvlm.pruning.greedy import choose_one_by_one
from vllm_litelvlm.pruning.kernels import kernels_take
from vllm_litelvlm.pruning.likeness import LikelyRows, cosines
from vllm_litelvlm.pruning.ranking import raster

#: Below this gain nothing but rounding errors is left of the kernel.
_NO_GAIN = 1e-5


class CDPruner(Pruner):
    """CDPruner (Zhang et al., NeurIPS 2025; github.com/Theia-4869/CDPruner).

    A determinantal point process whose kernel is the cosine similarity of projected tokens,
    scaled on both sides by their relevance: the negated cosine to the text in CLIP's space (mean
    over texts), stretched over the image to (0, 1]. Tokens are taken greedily by the largest gain
    in the determinant. Raster order.

    The official code stretches over a whole batch, and splits a text that is longer than what
    CLIP reads; here every image is stretched by itself, and such a text is cut as for the other
    methods. Once the kernel's rank is used up, tokens are taken by relevance. Without a text all
    are equally relevant. As for DivPrune, the projector runs on all tokens.

    ``centred`` (Cen-Prune, 2026): of tokens less their mean, relevance times how rare a token is.
    """

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "CDPruner (NeurIPS 2025)"
    reads_text: ClassVar[bool] = True

    centred: bool = Field(False, description=CENTRED)

    @property
    def needs(self) -> frozenset[Signal]:
        """Projected tokens, and their cosine to the texts."""
        return frozenset({Signal.FEATURES, Signal.PROJECTED, Signal.COSINE})

    def select(self, signals: Signals, budget: int) -> Selection:
        """Greedy maximum a posteriori inference (Chen et al., 2018), one token a step."""
        tokens, relevance = signals[Signal.PROJECTED], _relevance(signals)
        if self.centred:
            tokens = centred(tokens)
            relevance = relevance * rarity(tokens)
        kept = raster(_chosen(tokens, relevance, budget))
        return keep(signals, kept, signals.have_text.expand_as(kept))


def _relevance(signals: Signals) -> Tensor:
    """From just above 0 to 1 over each image, float32 [images, patches]."""
    raw = -signals.own_texts(signals[Signal.COSINE], 0.0).sum(dim=1)
    raw = shared_among(raw, signals.text_counts)
    lowest, highest = raw.aminmax(dim=-1, keepdim=True)
    return (raw - lowest + 1e-6) / (highest - lowest).clamp(min=1e-6)


def _chosen(tokens: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Tokens in the order of their choice, int64 [images, count]."""
    if kernels_take(tokens):
        from vllm_litelvlm.pruning.kernels.determinant import choose_in_one_launch

        return choose_in_one_launch(cosines(tokens), relevance, count, _NO_GAIN)
    if tokens.device.type == "cpu":
        return most_volume(LikelyRows(tokens, count).read, relevance, count)
    likeness, images = cosines(tokens), torch.arange(len(tokens), device=tokens.device)
    return most_volume(lambda newest, _: likeness[images, newest], relevance, count)


def most_volume(
    cosines_of: Callable[[Tensor, Tensor], Tensor], relevance: Tensor, count: int
) -> Tensor:
    """One token of every image a step, by the largest gain in the kernel's determinant.

    Args:
        cosines_of: gives those of one token an image with all, float32 [images, patches]; from
            which one, int64 [images], and all tokens' keys of this step.
        relevance: float32 [images, patches].
        count: how many to choose.

    Returns:
        Tokens in the order of their choice, int64 [images, count].
    """
    gain = relevance.square()  # the kernel's diagonal
    # Rows of the kernel's Cholesky factor, one for each chosen token.
    factor = torch.zeros(len(gain), count, gain.shape[1], device=gain.device)
    steps = itertools.count()
    last = torch.empty_like(gain)  # keys

    def keys(newest: Tensor | None) -> Tensor:
        if newest is not None:
            add(newest, next(steps))
        # Gains before leftovers.
        return torch.where(gain > _NO_GAIN, gain, relevance - 2, out=last)

    def add(newest: Tensor, step: int) -> None:
        at = newest[:, None]
        own = gain.gather(1, at)
        before = factor[:, :step]
        of_newest = before.gather(2, at[:, None].expand(-1, step, -1))
        shared = (of_newest.transpose(1, 2) @ before).squeeze(1)
        kernel = relevance.gather(1, at) * cosines_of(newest, last) * relevance
        row = (kernel - shared) / own.clamp(min=_NO_GAIN).sqrt()
        factor[:, step] = torch.where(own > _NO_GAIN, row, 0.0)
        gain.sub_(factor[:, step].square())

    return choose_one_by_one(keys, count)
