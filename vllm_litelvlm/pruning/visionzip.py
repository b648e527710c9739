"""VisionZip: [CLS], the tokens that it attends to, and merged representatives of the rest."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import CLS, Pruner, Selection, Signal, Signals, take, to_device
from vllm_litelvlm.pruning.ranking import highest, others, part, raster


class VisionZip(Pruner):
    """VisionZip (Yang et al., CVPR 2025; github.com/dvlab-research/VisionZip).

    Dominant tokens are [CLS], which goes to the language model too, and the patches that it
    attends to most in the feature layer, in raster order. Of the rest, contextual targets stand at
    a uniform stride; every other token joins the target with the most similar key (mean over
    heads, cosine), and a target becomes itself plus the mean of those that joined it.

    ``share`` is the dominant part of the budget, [CLS] included: 54 + 10 of 64, 108 + 20 of 128
    and 162 + 30 of 192 tokens, as published. [CLS] stays in any case.
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
        dominant = max(1, part(budget, self.share))
        attended = raster(highest(signals[Signal.CLS_ATTENTION], dominant - 1))
        features = signals[Signal.FEATURES]
        tokens = [features[:, :1], take(features[:, 1:], attended)]
        first = torch.full((signals.images, 1), CLS, device=signals.device)
        places = [first, attended]
        if budget > dominant:
            targets, merged = self._contextual(signals, attended, budget - dominant)
            tokens.append(merged)
            places.append(targets)
        indices = torch.cat(places, dim=1)
        nobody = torch.zeros_like(indices, dtype=torch.bool)
        return Selection(torch.cat(tokens, dim=1), indices, nobody)

    @staticmethod
    def _contextual(signals: Signals, attended: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Targets, int64 [images, count], and what they become, [images, count, width]."""
        rest = others(attended, signals.patches)
        stride = max(1, rest.shape[1] // count)
        at = range(0, count * stride, stride)
        between = sorted(set(range(rest.shape[1])) - set(at))
        targets = rest[:, to_device(at, signals.device)]
        joining = rest[:, to_device(between, signals.device)]
        keys = nn.functional.normalize(signals[Signal.KEYS], dim=-1)
        likeness = take(keys, joining) @ take(keys, targets).transpose(1, 2)
        joined = nn.functional.one_hot(likeness.argmax(dim=-1), count).to(keys.dtype)
        numbers_joined = joined.sum(dim=1).clamp(min=1)[:, :, None]
        patches = signals.patch_tokens.float()
        added = joined.transpose(1, 2) @ take(patches, joining) / numbers_joined
        return targets, (take(patches, targets) + added).to(signals.patch_tokens.dtype)
