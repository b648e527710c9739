"""How fast training goes: the learning rate, the clock, and the losses between two reports."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from vllm_litelvlm.demo.training.schedule import Stage
from vllm_litelvlm.demo.training.state import Position

#: Steps at the beginning of a stage over which the learning rate rises.
_WARM_UP = 50
#: The name of the gradient's length.
_GRADIENT = "gradient"


@dataclass
class Report:
    """Means of the losses since the last line of the log."""

    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    images: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, losses: dict[str, torch.Tensor], gradient: torch.Tensor, images: int) -> None:
        """Count a step; waits for no device."""
        self.steps += 1
        self.images += images
        for name, value in {**losses, _GRADIENT: gradient}.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()

    def line(self) -> dict[str, object]:
        """What the log tells."""
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        seconds = time.monotonic() - self.began
        return {
            _GRADIENT: means.pop(_GRADIENT),
            "losses": means,
            "images_per_second": self.images / seconds,
        }


class Clock:
    """When it is time again for things, and how long training has lasted.

    ``every``: the seconds between two of each. ``worked`` tells the seconds of training; on a CPU
    those of this process, so that what runs beside it prolongs a stage and does not cut it short.
    """

    def __init__(
        self, every: Mapping[str, float], worked: Callable[[], float] = time.process_time
    ) -> None:
        self._every, self._worked = every, worked
        self._now = worked()
        self._last = dict.fromkeys(self._every, time.monotonic())

    def tick(self, position: Position, step: bool = True) -> None:
        """Count the time since the last tick, and a step."""
        passed = self._worked() - self._now
        self._now += passed
        position.seconds += passed
        position.stage_seconds += passed
        position.step += step

    def due(self, what: str) -> bool:
        """Whether it is time, and then from now on anew."""
        now = time.monotonic()
        due = now - self._last[what] >= self._every[what]
        if due:
            self._last[what] = now
        return due


def learning_rate(stage: Stage, position: Position) -> float:
    """The rate of the next step: a short rise, and then half a cosine down."""
    down = 0.5 * (1 + math.cos(math.pi * min(1.0, share_done(stage, position))))
    rise = min(1.0, (position.step + 1) / _WARM_UP)
    return stage.rate * rise * (stage.fall + (1 - stage.fall) * down)


def share_done(stage: Stage, position: Position) -> float:
    """The share of a stage that is done, by time or by steps."""
    if stage.steps is not None:
        return position.step / stage.steps
    return position.stage_seconds / (60 * stage.minutes)
