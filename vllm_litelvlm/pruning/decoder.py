"""The contract of methods that prune between the layers of the language model.

They read attention maps of the language model, which paged attention does not give, so vLLM
cannot run them; :mod:`vllm_litelvlm.evaluation` runs them with transformers.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vllm_litelvlm.options import StrictModel


@dataclass(frozen=True)
class DecoderState:
    """One sequence between two layers of the language model: text, visual tokens, text.

    ``hidden`` [tokens, width]: the layer's output.
    ``embedded`` [tokens of the whole prompt, width]: the first layer's input.
    ``start``, ``visual``: where the visual tokens begin in ``hidden``, and how many are left.
    ``attention``: the layer's attention of given rows (indices into ``hidden``, int64 [rows]),
    probabilities, float32 [heads, rows, tokens].
    """

    hidden: Tensor
    embedded: Tensor
    start: int
    visual: int
    attention: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DecoderSelection:
    """What the next layer gets in place of the visual tokens.

    ``kept`` int64 [kept]: indices among the visual tokens that were left, rising.
    ``added`` [added, width]: tokens to put behind them.
    """

    kept: Tensor
    added: Tensor


class DecoderPruner(StrictModel):
    """A method that drops visual tokens inside the language model; its fields are its options."""

    name: ClassVar[str]
    paper: ClassVar[str]
    reads_text: ClassVar[bool] = True
    #: Whether tokens keep the positions that they had; else they are numbered anew.
    keeps_positions: ClassVar[bool]

    @abstractmethod
    def pruned_layers(self, budget: int, depth: int) -> tuple[int, ...]:
        """After which of the ``depth`` layers, counted from 0, tokens are dropped.

        Raises OptionsError where the method has no schedule for the budget or the depth.
        """

    @abstractmethod
    def select(self, state: DecoderState, budget: int, stage: int) -> DecoderSelection:
        """Choose after the layer ``pruned_layers(...)[stage]``."""
