"""VisionZip: [CLS], the tokens that it attends to, and merged representatives of the rest."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import CLS, Pruner, Selection, Signal, Signals, take, to_device
from vllm_litelvlm.pruning.ranking import highest, part, raster


class VisionZip(Pruner):
    """VisionZip (Yang et al., CVPR 2025; github.com/dvlab-research/VisionZip).

    Dominant tokens are [CLS], which goes to the language model too, and the patches that it
    attends to most in the feature layer, in raster order. Of the rest, contextual targets stand at
    a uniform stride; every other token joins the target with the most similar key (mean over
    heads, cosine), and a target becomes itself plus the mean of those that joined it.

    ``share`` is the dominant part of the budget, [CLS] included: 54 + 10 of 64, 108 + 20 of 128
    and 162 + 30 of 192 tokens, as published. [CLS] stays in any case, where the tower has one.
    """

    name: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "VisionZip (CVPR 2025)"

    share: float = Field(
        54 / 64, ge=0, le=1, description="a number from 0 to 1: dominant part of the budget"
    )

    @property
    def needs(self) -> frozenset[Signal]:
        """The feature layer's attention of [CLS] and keys."""
        return frozenset({Signal.FEATURES, Signal.CLS_ATTENTION, Signal.KEYS})

    def places(self, patches: int) -> range:
        """[CLS], and behind it the patches."""
        return range(CLS, patches)

    def select(self, signals: Signals, budget: int) -> Selection:
        """Dominant tokens, then contextual ones."""
        own = signals.cls_tokens
        dominant = max(own.shape[1], part(budget, self.share))
        falling = highest(signals[Signal.CLS_ATTENTION], signals.patches)
        attended, rest = falling.tensor_split((dominant - own.shape[1],), dim=1)
        attended = raster(attended)
        tokens = [own, take(signals.patch_tokens, attended)]
        places = [nn.functional.pad(attended, (own.shape[1], 0), value=CLS)]
        if budget > dominant:
            targets, merged = self._contextual(signals, raster(rest), budget - dominant)
            tokens.append(merged)
            places.append(targets)
        indices = torch.cat(places, dim=1)
        nobody = torch.zeros_like(indices, dtype=torch.bool)
        return Selection(torch.cat(tokens, dim=1), indices, nobody)

    @staticmethod
    def _contextual(signals: Signals, rest: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Targets, int64 [images, count], and what they become, [images, count, width].

        ``rest``: the patches that are left, in raster order, int64 [images, left].
        """
        stride = max(1, rest.shape[1] // count)
        at = range(0, count * stride, stride)
        between = sorted(set(range(rest.shape[1])) - set(at))
        rest = rest.index_select(1, to_device([*at, *between], signals.device))  # targets first
        keys = nn.functional.normalize(take(signals[Signal.KEYS], rest), dim=-1)
        nearest = (keys[:, count:] @ keys[:, :count].transpose(1, 2)).argmax(dim=-1)
        joined = keys.new_zeros(signals.images, count, len(between))
        joined.scatter_(1, nearest[:, None], 1.0)
        joined /= joined.sum(dim=2, keepdim=True).clamp(min=1)
        patches = take(signals.patch_tokens, rest).float()
        merged = torch.baddbmm(patches[:, :count], joined, patches[:, count:])
        return rest[:, :count], merged.to(signals.patch_tokens.dtype)
