"""A pair of towers, for images and for texts, and the scores of patches that they give."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.preprocessing import Preprocessor


class Score(StrEnum):
    """What patches may be ranked by. Each is float32 [patches]; "aligned" is in the texts' space.

    What stands for [CLS] and [EOS] in an encoder without them, :attr:`Encoder.labels` says.
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
        model: of transformers, in float32.
        image_processor: the checkpoint's.
        tokenizer: the checkpoint's.

    ``labels`` names the scores there are, in the order of tables; ``context`` is the one that
    takes the place of Eq. 5 in LiteLVLM; ``notes`` say what the labels leave open.
    """

    kind: ClassVar[str]
    labels: ClassVar[Mapping[Score, str]]
    context: ClassVar[Score]
    notes: ClassVar[Sequence[str]]

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        vision, text = model.config.vision_config, model.config.text_config
        self.text_tokens = int(text.max_position_embeddings)
        self.preprocessor = Preprocessor(
            image_processor, side=int(vision.image_size), patch=int(vision.patch_size)
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        place: torch.device = self.model.device
        return place

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.preprocessor.grid**2

    @torch.no_grad()
    def scores(
        self, pixel_values: Tensor, owners: Sequence[int], texts: Sequence[str]
    ) -> dict[Score, Tensor]:
        """Every score of some pairs of images and texts, float32 [pairs, patches], on the CPU.

        Args:
            pixel_values: [images, 3, side, side].
            owners: the image of each pair.
            texts: the text of each pair.
        """
        states = self.vision(pixel_values.to(self.device), output_hidden_states=True).hidden_states
        index = torch.tensor(owners, device=self.device)
        found = self._scores(states[-2], states[-1], index, self.embed(texts))
        return {name: found[name].float().cpu() for name in self.labels}

    @property
    def vision(self) -> Any:
        """The vision tower."""
        return self.model.vision_model

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings, float32 [texts, width]."""

    @abstractmethod
    def _scores(
        self, hidden: Tensor, last: Tensor, owners: Tensor, texts: Tensor
    ) -> dict[Score, Tensor]:
        """Every score, [pairs, patches].

        Args:
            hidden: hidden state -2, [images, tokens, width].
            last: the last layer's output before any further norm, the same shape.
            owners: the image of each pair, int64 [pairs].
            texts: the embedding of each pair's text, [pairs, width of embeddings].
        """
