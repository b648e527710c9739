"""Random selection, the baseline that every table must beat."""

from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import SEED, Pruner, Selection, Signal, Signals, keep, to_device
from vllm_litelvlm.pruning.ranking import raster


class Random(Pruner):
    """Patch tokens drawn uniformly, in raster order (Table 4, row 0 of the paper).

    The draw depends on ``seed`` and the number of patches alone, and a smaller budget keeps a
    subset of a larger one's tokens. Give each request its own seed for independent draws.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "LiteLVLM, Table 4 #0"
    seed: int = SEED

    @property
    def needs(self) -> frozenset[Signal]:
        """Nothing but the tokens themselves."""
        return frozenset({Signal.FEATURES})

    def select(self, signals: Signals, budget: int) -> Selection:
        """The first ``budget`` entries of the seed's permutation, sorted."""
        drawn = permutation(self.seed, signals.patches, signals.device)
        kept = raster(drawn[:budget])
        return keep(signals, kept.expand(signals.images, -1))


@lru_cache(maxsize=256)
def permutation(seed: int, patches: int, device: torch.device) -> Tensor:
    """The numbers below ``patches`` in a drawn order, int64, the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return to_device(torch.randperm(patches, generator=generator, device="cpu").tolist(), device)
