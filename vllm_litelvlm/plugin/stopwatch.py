"""Seconds spent on the device, without making the host wait for it."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from vllm_litelvlm.plugin.metrics import WorkerHistogram

Mark = float | torch.cuda.Event


@dataclass
class Section:
    """A part of the worker's code that is being timed, with pauses.

    ``spans`` are pairs of marks: events on a CUDA device, else seconds on the host's clock.
    """

    on_device: bool
    spans: list[tuple[Mark, Mark]] = field(default_factory=list)
    _began: Mark = 0.0

    def start(self) -> None:
        """Begin a span."""
        self._began = self._mark()

    def stop(self) -> None:
        """End it."""
        self.spans.append((self._began, self._mark()))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what runs meanwhile."""
        self.stop()
        yield
        self.start()

    def has_passed(self) -> bool:
        """Whether the device has come to the end."""
        last = self.spans[-1][1]
        return not isinstance(last, torch.cuda.Event) or bool(last.query())

    def seconds(self) -> float:
        """The spans together, once the section has passed."""
        total = 0.0
        for began, ended in self.spans:
            if isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
                total += began.elapsed_time(ended) / 1000
            elif isinstance(began, float) and isinstance(ended, float):
                total += ended - began
        return total

    def _mark(self) -> Mark:
        if not self.on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Stopwatch:
    """Times sections of the worker's code into histograms.

    Events of a CUDA device are read once they have passed: at the next section at the earliest.
    """

    _MOST_PENDING = 1024

    def __init__(self) -> None:
        self._pending: deque[tuple[WorkerHistogram, Section]] = deque(maxlen=self._MOST_PENDING)

    @contextmanager
    def time(self, histogram: WorkerHistogram | None, device: torch.device) -> Iterator[Section]:
        """Observe the section's seconds; None observes nothing."""
        section = Section(on_device=device.type == "cuda" and histogram is not None)
        section.start()
        yield section
        section.stop()
        if histogram is not None:
            self._pending.append((histogram, section))
            self._collect()

    def _collect(self) -> None:
        while self._pending and self._pending[0][1].has_passed():
            histogram, section = self._pending.popleft()
            histogram.observe(section.seconds())
