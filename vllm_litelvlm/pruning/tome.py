"""ToMe: tokens merged between the blocks of the vision tower."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import CLS, Pruner, Selection, Signal, Signals, take
from vllm_litelvlm.pruning.kernels import kernels_take


class ToMe(Pruner):
    """Token Merging (Bolya et al., ICLR 2023; github.com/facebookresearch/ToMe).

    In every block, between attention and MLP, tokens at even places are matched with those at odd
    places by the cosine of their keys (mean over heads), and the r best matched even ones are
    merged into their partners, as means weighted by how many patches each stands for. Attention
    counts a token as that many (the logarithm of its size is added to the logits). [CLS] is never
    merged.

    r is the same in every block, up to one (the blocks with one more are spread evenly), such that
    the feature layer ends with the budget. The
    merged tokens go to the language model in raster order, by the patch that others were merged
    into.

    Deviations: ToMe has no official form for LLaVA, and its own output order is an artefact of
    the matching. Where a block has to merge more than half of its tokens (a tower of few layers,
    or a tiny budget), the matching is repeated in it, with keys merged like the tokens.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "ToMe (ICLR 2023)"

    @property
    def needs(self) -> frozenset[Signal]:
        """The tower, which it runs in its own way."""
        return frozenset({Signal.TOWER})

    def select(self, signals: Signals, budget: int) -> Selection:
        """Run the tower, merging on the way."""
        tower = signals.tower
        assert tower is not None, "merging happens inside the tower"
        hidden = tower.embed()
        merged = signals.patches - budget
        places = torch.arange(CLS, signals.patches, device=signals.device)
        places = places.expand(signals.images, -1)
        sizes = torch.ones_like(places, dtype=torch.float32)
        for layer in range(tower.layers):
            hidden, keys = tower.attend(layer, hidden, sizes)
            count = merged * (layer + 1) // tower.layers - merged * layer // tower.layers
            hidden, sizes, places = _merge(hidden, keys, sizes, places, count)
            hidden = tower.feed_forward(layer, hidden)
        indices, order = torch.sort(places[:, 1:], dim=-1)
        nobody = torch.zeros_like(indices, dtype=torch.bool)
        return Selection(take(hidden[:, 1:], order), indices, nobody)


def _merge(
    hidden: Tensor, keys: Tensor, sizes: Tensor, places: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge ``count`` tokens of each image into others; returns hidden, sizes and places.

    Shapes: ``hidden`` [images, tokens, width], ``keys`` float32 [images, tokens, head width],
    ``sizes`` float32 and ``places`` int64 [images, tokens]. [CLS] comes first and stays there.
    """
    merge = merge_once
    if kernels_take(hidden):
        from vllm_litelvlm.pruning.kernels.merging import merge_in_one_launch as merge
    while count > 0:
        at_once = min(count, (hidden.shape[1] - 1) // 2)
        count -= at_once
        by = keys, sizes, places, at_once
        if count:  # the matching goes on with these
            keys, _, _ = merge(keys, *by)
        hidden, sizes, places = merge(hidden, *by)
    return hidden, sizes, places


def merge_once(
    hidden: Tensor, keys: Tensor, sizes: Tensor, places: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in one matching, which can merge all even tokens but [CLS]."""
    unit = nn.functional.normalize(keys, dim=-1)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)
    best[:, 0] = -torch.inf  # [CLS]
    order = torch.sort(best, dim=-1, descending=True, stable=True).indices
    source, stay = order[:, :count], torch.sort(order[:, count:], dim=-1).values
    # A row for each odd token, a column for each merged one: a product adds in a fixed order.
    joins = nn.functional.one_hot(partner.gather(1, source), sizes.shape[1] // 2)
    joins = joins.transpose(1, 2).to(sizes.dtype)

    def total(rows: Tensor) -> Tensor:
        """Each odd token and those that join it, added up."""
        return rows[:, 1::2] + joins @ take(rows[:, ::2], source)

    weight = sizes[:, :, None]
    size = total(weight)
    mean = (total(hidden.float() * weight) / size).to(hidden.dtype)
    return (
        torch.cat([take(hidden[:, ::2], stay), mean], dim=1),
        torch.cat([sizes[:, ::2].gather(1, stay), size.squeeze(2)], dim=1),
        torch.cat([places[:, ::2].gather(1, stay), places[:, 1::2]], dim=1),
    )
