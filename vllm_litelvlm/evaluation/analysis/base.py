"""What an analysis is given, what it gives, and the options that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from vllm_litelvlm.errors import LiteLVLMError
from vllm_litelvlm.evaluation.analysis.budgets import Budget
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.samples import Sample


class AnalysisError(LiteLVLMError, ValueError):
    """The data cannot be analysed; the message says why."""


@dataclass(frozen=True)
class Settings:
    """How data sets are read and results shown.

    ``samples`` are drawn with ``seed``; ``batch`` of them are encoded at once. ``wording`` is what
    patches are compared with: the referring expressions in a sample's prompt, one after the
    other, or the whole prompt. ``pictures`` is how many images are drawn; ``spacy`` names the spaCy
    pipeline that tells referring words from others, in place of the data set.
    """

    samples: int = 500
    seed: int = 0
    batch: int = 8
    wording: Literal["expression", "prompt"] = "expression"
    budgets: tuple[Budget, ...] = (64, 128, 192)
    pictures: int = 4
    spacy: str | None = None


@dataclass(frozen=True)
class Look:
    """One image and one text.

    ``image`` numbers the images, so that what is said about one image is not taken for
    independent. ``referred``, bool [patches]: the mask covers more than half of the patch (the
    paper's [REF] tokens); None where no mask is known to be the text's alone. ``scores`` are
    float32 [patches], on the CPU.
    """

    sample: Sample
    text: str
    image: int
    referred: Tensor | None
    scores: Mapping[Score, Tensor]

    @property
    def divides(self) -> bool:
        """Whether some patches are referred to and some are not."""
        return self.referred is not None and 0 < int(self.referred.sum()) < len(self.referred)


@dataclass(frozen=True)
class Batch:
    """Some samples, and a look for each of their texts; none where no analysis reads images."""

    samples: Sequence[Sample]
    looks: Sequence[Look]


@dataclass(frozen=True)
class Result:
    """Numbers for a file, and a Markdown table with what a reader of it has to know."""

    numbers: Mapping[str, Any]
    table: str


class Analysis(ABC):
    """Gathers what it needs batch by batch, and then draws and tells it."""

    name: ClassVar[str]
    title: ClassVar[str]
    reads_images: ClassVar[bool] = True

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        self.encoder = encoder
        self.settings = settings

    @classmethod
    def obstacle(cls, encoder: Encoder) -> str | None:
        """Why this analysis does not apply to a checkpoint, in a sentence; None: it does."""
        return None

    @abstractmethod
    def observe(self, batch: Batch) -> None:
        """Take in a batch."""

    @abstractmethod
    def finish(self, folder: Path) -> Result:
        """Write the pictures into ``folder``, under names that begin with the analysis's.

        Raises AnalysisError where no sample had what is analysed.
        """
