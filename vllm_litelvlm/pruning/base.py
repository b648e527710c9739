"""The contract between methods and whoever serves them.

A method is a frozen options object (:class:`Pruner`) that turns :class:`Signals`, the scores of
a batch of images, into one :class:`Selection` an image. It names the signals that it needs, so
that nothing else is computed, and it never changes its inputs.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from vllm_litelvlm.options import StrictModel


class Signal(StrEnum):
    """A score of patch tokens that a method can ask for."""

    SIMILARITY = "similarity"
    CONTEXT = "context"
    CONTEXT_NORMALISED = "context_normalised"
    CLS_ATTENTION = "cls_attention"


@dataclass(frozen=True)
class Signals:
    """Scores of ``images`` images with ``patches`` patch tokens each, float32 on one device.

    ``similarity`` is [images, texts, patches], where ``texts`` is the largest number of texts in
    the batch; rows past an image's own ``text_counts`` entry are padding. The others are
    [images, patches]. A signal that no method of the batch needs is None.
    """

    images: int
    patches: int
    device: torch.device
    text_counts: Sequence[int]
    similarity: Tensor | None = None
    context: Tensor | None = None
    context_normalised: Tensor | None = None
    cls_attention: Tensor | None = None

    def __getitem__(self, signal: Signal) -> Tensor:
        tensor = getattr(self, signal.value)
        assert isinstance(tensor, Tensor), f"signal {signal} was not computed"
        return tensor

    def rows(self, images: Sequence[int]) -> "Signals":
        """The signals of some of the images, in the order given."""
        if list(images) == list(range(self.images)):
            return self
        index = to_device(list(images), self.device)
        chosen = {
            signal.value: tensor.index_select(0, index)
            for signal in Signal
            if (tensor := getattr(self, signal.value)) is not None
        }
        counts = [self.text_counts[image] for image in images]
        return Signals(len(counts), self.patches, self.device, counts, **chosen)


@dataclass(frozen=True)
class Selection:
    """The kept tokens of one image.

    ``indices`` int64 [kept]: patch indices in the order in which the language model gets them.
    ``guided`` bool [kept]: whether similarity to the text chose the token (red in the paper's
    Figure 5) or something else did (green).
    """

    indices: Tensor
    guided: Tensor


class Pruner(StrictModel):
    """A pruning method; its fields are its options.

    Implementations are batched over images with different budgets and numbers of texts, give an
    output whose length depends on the budget alone, and never make the host wait for the device.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    reads_text: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """The signals that :meth:`select` reads."""

    def output_count(self, budget: int) -> int:
        """How many tokens an image keeps; the prompt and the model both call this."""
        return budget

    @abstractmethod
    def select(self, signals: Signals, budgets: Sequence[int]) -> list[Selection]:
        """Choose ``output_count(budgets[i])`` tokens of image ``i``, for every image.

        ``budgets`` holds one token count an image, each from 1 to ``signals.patches``.
        """


class ScorePruner(Pruner):
    """A method that keeps the tokens with the highest of one score, in raster order."""

    @abstractmethod
    def score(self, signals: Signals) -> Tensor:
        """The score, float32 [images, patches]."""

    def select(self, signals: Signals, budgets: Sequence[int]) -> list[Selection]:
        """Keep the highest; ties go to the lower patch index."""
        ranked = torch.sort(self.score(signals), dim=-1, descending=True, stable=True).indices
        nobody = torch.zeros(signals.patches, dtype=torch.bool, device=signals.device)
        return [
            Selection(torch.sort(row[:budget]).values, nobody[:budget])
            for row, budget in zip(ranked, budgets, strict=True)
        ]


def to_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """A host list as an int64 tensor on ``device``, without waiting for the device."""
    tensor = torch.tensor(numbers, dtype=torch.int64, device="cpu")
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


SEED = Field(0, ge=0, lt=2**63, description="a whole number from 0 and below 2**63")
