"""What guidance asks of whoever has the images and the vision tower."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import Signal, Tower


class Images(Protocol):
    """A batch of images on their way through a vision tower."""

    @property
    def keys(self) -> Sequence[bytes]:
        """One an image: images of equal keys have equal pixels."""

    @property
    def patches(self) -> int:
        """Patch tokens of one image."""

    @property
    def device(self) -> torch.device:
        """Where everything is."""

    @property
    def tower(self) -> Tower:
        """The tower's blocks, on these images."""

    def run(self, images: Sequence[int], with_input: bool) -> tuple[Tensor, Tensor | None]:
        """Run the tower on some of the images.

        Returns the feature layer's output (hidden state -2) and, if asked for, its input (hidden
        state -3), both [images, 1 + patches, width], [CLS] first, in the tower's dtype.
        """

    def project(self, patches: Tensor) -> Tensor:
        """Patch tokens behind the projector, [images, patches, width of the language model]."""

    def embed(self, ids: Tensor) -> Tensor:
        """The language model's input embeddings of token ids, [tokens] to [tokens, its width]."""


#: Signals that are computed from hidden state -3.
FROM_FEATURE_INPUT = frozenset({Signal.CLS_ATTENTION, Signal.KEYS})


def needs_features(needs: frozenset[Signal]) -> bool:
    """Whether the tower has to run as it is; methods inside it run it in their own way."""
    return bool(needs - {Signal.TOWER})
