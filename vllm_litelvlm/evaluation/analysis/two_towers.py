"""Pairs of towers, for texts and for images that are squares of one size."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vllm_litelvlm.evaluation.analysis.budgets import Budget
from vllm_litelvlm.evaluation.analysis.encoder import Encoder, Score
from vllm_litelvlm.evaluation.analysis.preprocessing import Pixels, SquarePreprocessor


class TwoTowers(Encoder):
    """A model of transformers with a ``vision_model`` and a ``text_model``."""

    budgets: ClassVar[Sequence[Budget]] = (64, 128, 192)

    def _preprocessor(self, image_processor: Any) -> SquarePreprocessor:
        vision = self.model.config.vision_config
        return SquarePreprocessor(
            image_processor, side=int(vision.image_size), patch=int(vision.patch_size)
        )

    @property
    def text_tokens(self) -> int:
        """The longest text."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def vision(self) -> Any:
        """The vision tower."""
        return self.model.vision_model

    @torch.no_grad()
    def scores(
        self, pixels: Sequence[Pixels], owners: Sequence[int], texts: Sequence[str]
    ) -> dict[Score, list[Tensor]]:
        """See :meth:`Encoder.scores`."""
        values = torch.stack([one.values for one in pixels]).to(self.device)
        states = self.vision(values, output_hidden_states=True).hidden_states
        index = torch.tensor(owners, device=self.device)
        found = self._scores(states[-2], states[-1], index, self.embed(texts))
        return {name: list(found[name].float().cpu()) for name in self.labels}

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
