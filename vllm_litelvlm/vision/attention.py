"""What the last attention of a vision tower without [CLS] tells of its tokens.

Such towers (Qwen2.5-VL's, Qwen3-VL's) merge square cells of patches into the visual tokens that the
language model gets. What stands for [CLS] is the token that the others attend to most.
A SigLIP's cells have one patch each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.pruning.scores import context_score

#: Of attention probabilities that are computed together.
_BYTES_AT_ONCE = 64 * 2**20

#: Signals that are computed from it.
FROM_ATTENTION = frozenset(
    {Signal.CLS_ATTENTION, Signal.KEYS, Signal.CONTEXT, Signal.CONTEXT_NORMALISED}
)


def alone(tensor: Tensor) -> Tensor:
    """The sum over the ranks where there is one rank."""
    return tensor


@dataclass(frozen=True)
class LastAttention:
    """Queries, keys and values of a batch of images in the tower's last attention.

    All are [images, tokens, cell, heads, head width], any float dtype: token by token in raster
    order, and in each the patches of its cell. ``query`` and ``key`` are as they were projected;
    ``rotated_query`` and ``rotated_key`` tell places, as the attention reads them. Of heads that
    lie on several ranks, ``total`` sums a tensor over the ranks, and ``heads`` counts them all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    rotated_query: Tensor
    rotated_key: Tensor
    heads: int
    total: Callable[[Tensor], Tensor] = alone

    def signals(self, needs: frozenset[Signal]) -> dict[Signal, Tensor]:
        """The needed ones of :data:`FROM_ATTENTION`.

        * CLS_ATTENTION: the attention that a token receives, mean over heads, over the tokens that
          attend and over its cell. A token attends with the mean query of its cell.
        * KEYS: mean over heads and cell, before rotation.
        * CONTEXT (Eq. 5): by the query of the token that receives most, as one head of full width,
          before rotation; mean over a cell.
        """
        values: dict[Signal, Tensor] = {}
        if Signal.CLS_ATTENTION in needs:
            values[Signal.CLS_ATTENTION] = self.received
        if Signal.KEYS in needs:
            values[Signal.KEYS] = self.total(self.key.float().mean(dim=2).sum(dim=2)) / self.heads
        if Signal.CONTEXT in needs:
            values[Signal.CONTEXT] = self._context(normalised=False)
        if Signal.CONTEXT_NORMALISED in needs:
            values[Signal.CONTEXT_NORMALISED] = self._context(normalised=True)
        return values

    @cached_property
    def received(self) -> Tensor:
        """CLS_ATTENTION, float32 [images, tokens]."""
        # [images, heads, tokens, head width], and the keys of all patches.
        query = self.rotated_query.mean(dim=2).transpose(1, 2) * self.query.shape[-1] ** -0.5
        key = self.rotated_key.flatten(1, 2).transpose(1, 2)
        images, heads, tokens, _ = query.shape
        row = images * heads * key.shape[2] * torch.float32.itemsize
        sums = torch.zeros(images, key.shape[2], device=key.device)
        for some in query.split(max(1, _BYTES_AT_ONCE // row), dim=2):
            attention = (some @ key.transpose(2, 3)).softmax(dim=-1, dtype=torch.float32)
            sums += attention.sum(dim=(1, 2))
        mean = self.total(sums.view(images, tokens, -1).mean(dim=2))
        return mean.div(self.heads * tokens)

    def _context(self, normalised: bool) -> Tensor:
        """Eq. 5 in either form, float32 [images, tokens]."""
        most = self.received.argmax(dim=-1)
        images = torch.arange(len(most), device=most.device)
        query = self.query[images, most].float().mean(dim=1)  # [images, heads, head width]
        key = self.key.flatten(1, 2).float()  # [images, patches, heads, head width]
        logits = self.total(torch.einsum("ihd,iphd->ip", query, key))
        if normalised:
            own = self.total(query.square().sum(dim=(1, 2))).sqrt()[:, None]
            theirs = self.total(key.square().sum(dim=(2, 3))).sqrt()
            logits = logits / (own * theirs).clamp(min=torch.finfo(torch.float32).tiny)
        width = self.heads * query.shape[-1]
        lengths = self.total(self.value.flatten(1, 2).float().square().sum(dim=(2, 3))).sqrt()
        scores = context_score(logits / width**0.5, lengths)
        return scores.view(*self.query.shape[:2], -1).mean(dim=2)
