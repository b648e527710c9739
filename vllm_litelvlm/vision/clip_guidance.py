"""Guidance of models whose vision tower is a CLIP's."""

from typing import ClassVar

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPVisionConfig

from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.vision.clip import ClipScorer
from vllm_litelvlm.vision.text import ClipTextTower
from vllm_litelvlm.vision.tower_guidance import TowerGuidance


class ClipGuidance(TowerGuidance):
    """All signals, as the paper and its neighbours define them.

    Args:
        tower: configuration of the model's vision tower.
        clip: configuration of the CLIP checkpoint that it was taken from.
        dtype: of what costs most, the text tower, and the scorer's value and output projections.
    """

    available: ClassVar[frozenset[Signal]] = frozenset(Signal)
    has_cls: ClassVar[bool] = True

    def __init__(
        self, tower: CLIPVisionConfig, clip: CLIPConfig, dtype: torch.dtype = torch.float32
    ) -> None:
        scorer = ClipScorer(tower, clip.projection_dim, dtype)
        super().__init__(tower, scorer, ClipTextTower(clip.text_config, dtype))

    @staticmethod
    def own_ids(ids: Tensor) -> Tensor:
        """Token ids up to their end token, which padding repeats."""
        numbers = ids.tolist()  # on the CPU, where a list is searched sooner than a tensor
        return ids[: numbers.index(numbers[-1]) + 1]
