"""Images whose vision tower has already run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class MadeUpImages:
    """The ``Images`` protocol on given hidden states; ``ran`` notes what the tower was asked for.

    ``hidden`` and ``feature_input`` [images, 1 + patches, width], or without [CLS]; every image is
    its own unless ``names`` says otherwise.
    """

    hidden: Tensor
    feature_input: Tensor | None = None
    names: Sequence[str] | None = None
    ran: list[list[int]] = field(default_factory=list)
    tower: Any = None
    has_cls: bool = True

    @property
    def keys(self) -> list[bytes]:
        return [name.encode() for name in self.names or map(str, range(len(self.hidden)))]

    @property
    def patches(self) -> int:
        return self.hidden.shape[1] - self.has_cls

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def run(self, images: Sequence[int], with_input: bool) -> tuple[Tensor, Tensor | None]:
        self.ran.append(list(images))
        if not with_input:
            return self.hidden[list(images)], None
        assert self.feature_input is not None
        return self.hidden[list(images)], self.feature_input[list(images)]

    def project(self, patches: Tensor) -> Tensor:
        return patches[..., :3] * 2

    def embed(self, ids: Tensor) -> Tensor:
        return torch.stack([ids.sin(), ids.cos(), (2 * ids).sin()], dim=-1)
