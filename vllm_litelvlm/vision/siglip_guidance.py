"""Guidance of models whose vision tower is a SigLIP's."""

from typing import ClassVar

import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipVisionConfig

from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.vision.siglip import SiglipScorer
from vllm_litelvlm.vision.siglip_text import SiglipTextTower
from vllm_litelvlm.vision.tower_guidance import TowerGuidance


class SiglipGuidance(TowerGuidance):
    """All signals but the tower's own blocks; see :class:`SiglipScorer` for what they mean here.

    Args:
        tower: configuration of the model's vision tower, which may lack the last layer.
        siglip: configuration of the SigLIP checkpoint that it was taken from.
        dtype: of what costs most, the text tower among it.
    """

    available: ClassVar[frozenset[Signal]] = frozenset(Signal) - {Signal.TOWER}
    has_cls: ClassVar[bool] = False

    def __init__(
        self, tower: SiglipVisionConfig, siglip: SiglipConfig, dtype: torch.dtype = torch.float32
    ) -> None:
        scorer = SiglipScorer(siglip.vision_config, dtype)
        super().__init__(tower, scorer, SiglipTextTower(siglip.text_config, dtype))

    @staticmethod
    def own_ids(ids: Tensor) -> Tensor:
        """All of them: every text has the same length, and its padding is read."""
        return ids
