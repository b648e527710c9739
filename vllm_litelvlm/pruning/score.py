"""Methods that are one score."""

from abc import abstractmethod

from torch import Tensor

from vllm_litelvlm.pruning.base import Pruner, Selection, Signals, keep
from vllm_litelvlm.pruning.ranking import highest, raster


class ScorePruner(Pruner):
    """A method that keeps the tokens with the highest of one score, in raster order."""

    @abstractmethod
    def score(self, signals: Signals) -> Tensor:
        """The score, float32 [images, patches]."""

    def select(self, signals: Signals, budget: int) -> Selection:
        """Keep the highest; ties go to the lower patch index."""
        return keep(signals, raster(highest(self.score(signals), budget)))
