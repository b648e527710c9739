"""AdamW on float32 master weights of a model that computes in another dtype."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.02
_LONGEST_GRADIENT = 1.0


class MasterAdamW:
    """Steps the float32 masters of some modules and copies them into the modules' weights.

    Building it casts every parameter of more than no dimensions to ``dtype``. The modules' own
    weights are never trained on: they are always the masters, rounded.
    """

    def __init__(self, modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
        self._working = [weight for module in modules for weight in module.parameters()]
        self.masters = [nn.Parameter(weight.detach().float().clone()) for weight in self._working]
        for weight in self._working:
            if weight.dim():
                weight.data = weight.data.to(dtype)
        self.dtype = dtype
        decayed = [master for master in self.masters if master.dim() > 1]
        others = [master for master in self.masters if master.dim() <= 1]
        self._adam = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": _WEIGHT_DECAY},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=_BETAS,
            fused=True,
        )
        self._pull()

    @property
    def length(self) -> int:
        """How many numbers the weights are."""
        return sum(master.numel() for master in self.masters)

    def take_gradient(self) -> Tensor:
        """The modules' gradients as one row, float32 [length]; theirs are cleared."""
        rows = []
        for weight in self._working:
            assert weight.grad is not None, "every weight takes part in the loss"
            rows.append(weight.grad.flatten().float())
            weight.grad = None
        return torch.cat(rows)

    def step(self, gradient: Tensor, rate: float) -> Tensor:
        """Step by a gradient as :meth:`take_gradient` gives it; its length before clipping."""
        pieces = gradient.split([master.numel() for master in self.masters])
        for master, piece in zip(self.masters, pieces, strict=True):
            master.grad = piece.view_as(master)
        length = nn.utils.clip_grad_norm_(self.masters, _LONGEST_GRADIENT)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self._pull()
        return length

    def adopt(self) -> None:
        """Take the modules' own weights as masters, after something else set them."""
        with torch.no_grad():
            torch._foreach_copy_([*self.masters], [*self._working])

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments."""
        return {
            "masters": [master.data for master in self.masters],
            "adam": self._adam.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave, into the modules too."""
        masters: list[Tensor] = state["masters"]
        with torch.no_grad():
            for master, saved in zip(self.masters, masters, strict=True):
                master.copy_(saved)
        self._adam.load_state_dict(state["adam"])
        self._pull()

    def _pull(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_([*self._working], [*self.masters])


@dataclass(frozen=True)
class Together:
    """Optimisers of different modules that step together, each with its own bound on a step."""

    parts: Sequence[MasterAdamW]

    def take_gradient(self) -> Tensor:
        """As of one, the parts' in a row."""
        return torch.cat([part.take_gradient() for part in self.parts])

    def step(self, gradient: Tensor, rate: float) -> Tensor:
        """As of one; the length of the whole gradient."""
        pieces = gradient.split([part.length for part in self.parts])
        lengths = [part.step(piece, rate) for part, piece in zip(self.parts, pieces, strict=True)]
        length: Tensor = torch.stack(lengths).norm()
        return length
