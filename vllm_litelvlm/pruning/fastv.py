"""FastV: the visual tokens that the last prompt token attends to in an early layer."""

from typing import ClassVar

import torch
from pydantic import Field

from vllm_litelvlm.errors import OptionsError
from vllm_litelvlm.pruning.decoder import DecoderPruner, DecoderSelection, DecoderState
from vllm_litelvlm.pruning.ranking import highest, raster


class FastV(DecoderPruner):
    """FastV (Chen et al., ECCV 2024; github.com/pkunlp-icler/FastV).

    The first ``layer`` layers (K in the paper) see every token. Then the ``budget`` visual tokens
    stay that the last prompt token attends to most in the last of these layers, by attention
    probabilities, mean over heads. They stay in order and keep their positions.

    Deviation: ties go to the lower index.
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "FastV (ECCV 2024)"
    keeps_positions: ClassVar[bool] = True

    layer: int = Field(
        2, ge=1, description="a whole number from 1: the first layer that sees fewer tokens"
    )

    def pruned_layers(self, budget: int, depth: int) -> tuple[int, ...]:
        """One layer. Raises OptionsError where no layer of the model would see fewer tokens."""
        if self.layer >= depth:
            raise OptionsError(
                f"litelvlm option 'layer' is {self.layer}, and this language model has {depth} "
                f"layers; allowed: 1 to {depth - 1}. Name a lower layer or a deeper model."
            )
        return (self.layer - 1,)

    def select(self, state: DecoderState, budget: int, stage: int) -> DecoderSelection:
        """The most attended ``budget``."""
        last = torch.tensor([len(state.hidden) - 1], device=state.hidden.device)
        attended = state.attention(last).mean(dim=0)[:, state.start : state.start + state.visual]
        kept = raster(highest(attended, budget))[0]
        return DecoderSelection(kept, state.hidden[:0])
