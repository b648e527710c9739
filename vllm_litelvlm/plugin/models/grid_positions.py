"""The part of a model class that places kept tokens by time, height and width (M-RoPE)."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_litelvlm.plugin.grid import (
    Span,
    continuation,
    place_tokens,
    prompt_positions,
    split_places,
    with_places,
)
from vllm_litelvlm.plugin.models.pruned import Batch
from vllm_litelvlm.pruning.base import Selection


class GridPositions:
    """Mixed into a model class that has M-RoPE before vLLM's own.

    vLLM asks for the first method in any case, for the others only where the server's
    ``positions`` is ``"original"``; requests then have either kind.
    """

    #: Placeholders in a prompt that stand for a visual token each.
    litelvlm_visual_tokens: tuple[int, ...]

    @abstractmethod
    def litelvlm_feature_spans(self, feature: MultiModalFeatureSpec) -> list[Span]:
        """Where the pictures of an item stand in its prompt."""

    @abstractmethod
    def litelvlm_spans(self, batch: Batch) -> list[Span]:
        """One an item of a step, wherever it stands."""

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Positions of a prompt, with what follows a picture where it stands unpruned."""
        features = sorted(mm_features, key=lambda one: one.mm_position.offset)
        spans = [span for one in features for span in self.litelvlm_feature_spans(one)]
        return prompt_positions(len(input_tokens), spans)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Take the places off the tokens of this step, and place the tokens by them."""
        if not multimodal_embeddings:
            return [], mrope_positions, continuation(mrope_positions)
        tokens, places = zip(*map(split_places, multimodal_embeddings), strict=True)
        device = mrope_positions.device
        ids = torch.as_tensor(input_ids, device=device)
        is_visual = torch.zeros_like(ids, dtype=torch.bool)
        for token in self.litelvlm_visual_tokens:
            is_visual |= ids == token
        known = torch.cat(places).to(device)
        rows = place_tokens(mrope_positions, is_visual, known, num_computed_tokens)
        return tokens, rows, continuation(rows)

    def litelvlm_placed(
        self,
        embeddings: Sequence[Tensor] | Tensor,
        batch: Batch,
        selections: Sequence[Selection] | None,
    ) -> list[Tensor]:
        """Every item's tokens with their places; those that stand as words do have none."""
        found = []
        for number, (tokens, span) in enumerate(
            zip(embeddings, self.litelvlm_spans(batch), strict=True)
        ):
            indices = None if selections is None else selections[number].indices
            places = span.token_places(indices, tokens.device)
            found.append(with_places(tokens, places.flatten(0, 1)))
        return found
