"""What ranks patches by texts, and the scores that it gives them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModel

from vllm_litelvlm.evaluation.analysis.budgets import Budget
from vllm_litelvlm.evaluation.analysis.preprocessing import Pixels, Preprocessor


class Score(StrEnum):
    """What patches may be ranked by. Each is float32 [patches]; "aligned" is in the texts' space.

    What stands for patches, [CLS] and [EOS] in an encoder without them, :attr:`Encoder.labels` and
    :attr:`Encoder.notes` say.
    """

    #: Dot product of the text embedding and the aligned patches of hidden state -2 (Eq. 4).
    EOS = "eos"
    #: The same with both sides normalised to length 1.
    EOS_COSINE = "eos_cosine"
    #: As :attr:`EOS`, of the last layer.
    EOS_LAST = "eos_last"
    #: Dot product of the aligned [CLS] and the aligned patches, both of hidden state -2.
    CLS = "cls"
    #: The same of the last layer.
    CLS_LAST = "cls_last"
    #: Dot product of the text embedding and the patches on the value path. Not the paper's.
    VALUE = "value"
    #: Contribution to [CLS] (Eq. 5).
    CONTEXT = "context"
    #: Attention of all patches to each, mean over heads and patches, in the last layer.
    RECEIVED = "received_attention"
    #: Attention of [CLS] to the patches, mean over heads, in the last layer.
    CLS_ATTENTION = "cls_attention"


class Encoder(ABC):
    """A checkpoint of transformers with its own preprocessing.

    Args:
        name: hub name or folder.
        model: of transformers, in float32, as :meth:`load_model` gives it.
        image_processor: the checkpoint's.
        tokenizer: the checkpoint's.

    ``labels`` names the scores there are, in the order of tables; ``context`` is the one that
    takes the place of Eq. 5 in LiteLVLM; ``notes`` say what the labels leave open; ``budgets`` are
    worth looking at.
    """

    kind: ClassVar[str]
    labels: ClassVar[Mapping[Score, str]]
    context: ClassVar[Score]
    notes: ClassVar[Sequence[str]]
    budgets: ClassVar[Sequence[Budget]]

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.preprocessor = self._preprocessor(image_processor)

    @classmethod
    def load_model(cls, name: str, config: Any) -> Any:
        """What is needed of a checkpoint, in float32; ``config`` is its configuration."""
        return AutoModel.from_pretrained(name, config=config, dtype=torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        place: torch.device = self.model.device
        return place

    @property
    def patches(self) -> int | None:
        """Patches of an image; None where its size decides."""
        return self.preprocessor.cells

    @property
    def all_patches(self) -> str:
        """All of an image's, in words that follow "of"."""
        return "an image's tokens" if self.patches is None else f"{self.patches} patches"

    @abstractmethod
    def scores(
        self, pixels: Sequence[Pixels], owners: Sequence[int], texts: Sequence[str]
    ) -> dict[Score, list[Tensor]]:
        """Every score of some pairs of images and texts, float32 [patches] a pair, on the CPU.

        Args:
            pixels: of the images.
            owners: the image of each pair.
            texts: the text of each pair.
        """

    @abstractmethod
    def _preprocessor(self, image_processor: Any) -> Preprocessor:
        """By the checkpoint's image processor, for :attr:`model`."""
