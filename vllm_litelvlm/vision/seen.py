"""What a vision tower made of a batch of images, as far as the batch's methods need it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import Signal, Tower


@dataclass(frozen=True)
class Seen:
    """A batch of ``images`` images of ``patches`` patch tokens each; None is what nobody needs.

    ``hidden`` [images, 1 + patches, width]: hidden state -2, the feature layer's output, [CLS]
    first.
    ``feature_input``: hidden state -3, the feature layer's input, the same shape.
    ``projected`` [images, patches, width of the language model]: ``hidden`` without [CLS], behind
    the projector.
    ``tower``: for methods that run the blocks themselves.
    """

    images: int
    patches: int
    device: torch.device
    hidden: Tensor | None = None
    feature_input: Tensor | None = None
    projected: Tensor | None = None
    tower: Tower | None = None


def needs_features(needs: frozenset[Signal]) -> bool:
    """Whether the tower has to run as it is; methods inside it run it in their own way."""
    return bool(needs - {Signal.TOWER})


def needs_feature_input(needs: frozenset[Signal]) -> bool:
    """Whether a signal is computed from hidden state -3."""
    return bool(needs & {Signal.CLS_ATTENTION, Signal.KEYS})
