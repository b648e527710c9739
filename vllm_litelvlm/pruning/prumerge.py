"""LLaVA-PruMerge: tokens that [CLS] attends to, each with its neighbours merged into it."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import Pruner, Selection, Signal, Signals, take
from vllm_litelvlm.pruning.ranking import highest

#: Neighbours merged into each kept token.
NEIGHBOURS = 32


class PruMerge(Pruner):
    """LLaVA-PruMerge (Shang et al., ICCV 2025; github.com/42Shawn/LLaVA-PruMerge).

    Importance is the attention of [CLS] in the last layer, as one head of full width. The
    ``budget - 1`` most important tokens stay, in order of falling importance. To each, the 32
    tokens with the most similar keys among all others are added, every one times its importance,
    unnormalised; a last token is the importance-weighted sum of all that were pruned.

    This is the fixed form. The automatic one, whose count is that of the importance's outliers
    (:func:`automatic_count`), cannot run in the engine, which has to know the number of tokens
    before the image is seen.
    """

    name: ClassVar[str] = "prumerge"
    paper: ClassVar[str] = "LLaVA-PruMerge (ICCV 2025), fixed count"

    @property
    def needs(self) -> frozenset[Signal]:
        """The last layer's attention of [CLS] and keys."""
        return frozenset({Signal.FEATURES, Signal.LAST_ATTENTION, Signal.LAST_KEYS})

    def places(self, patches: int) -> range:
        """The patches, and behind them the token that sums up the pruned ones."""
        return range(patches + 1)

    def select(self, signals: Signals, budget: int) -> Selection:
        """The most important, merged with their neighbours."""
        return merge_neighbours(signals, highest(signals[Signal.LAST_ATTENTION], budget - 1))


def merge_neighbours(signals: Signals, kept: Tensor) -> Selection:
    """Merge its nearest neighbours into each kept token, and all pruned ones into one more.

    ``kept`` is int64 [images, kept]; its order stays.
    """
    importance, patches = signals[Signal.LAST_ATTENTION], signals.patch_tokens.float()
    keys = nn.functional.normalize(signals[Signal.LAST_KEYS], dim=-1)
    likeness = take(keys, kept) @ keys.transpose(1, 2)
    likeness = likeness.scatter(2, kept[:, :, None], -torch.inf)  # not its own neighbour
    near = likeness.topk(min(NEIGHBOURS, signals.patches - 1), dim=-1).indices
    of_all = importance[:, None].expand_as(likeness)
    weights = torch.zeros_like(likeness).scatter_(2, near, of_all.gather(2, near))
    pruned = importance.scatter(1, kept, 0.0)
    sums = torch.cat([weights, pruned[:, None]], dim=1) @ patches
    sums[:, : kept.shape[1]].add_(take(patches, kept))
    indices = nn.functional.pad(kept, (0, 1), value=signals.patches)
    nobody = torch.zeros_like(indices, dtype=torch.bool)
    return Selection(sums.to(signals.patch_tokens.dtype), indices, nobody)


def automatic_count(importance: Tensor) -> Tensor:
    """How many tokens PruMerge would keep by itself: importance above Q3 + 1.5 (Q3 - Q1).

    Args:
        importance: ``Signal.LAST_ATTENTION``, float32 [images, patches].

    Returns:
        int64 [images], without the token that sums up the pruned ones.
    """
    quartiles = torch.tensor([0.25, 0.75], device=importance.device)
    first, third = importance.quantile(quartiles, dim=-1)
    outliers: Tensor = importance > (third + 1.5 * (third - first))[:, None]
    return outliers.sum(dim=-1)
