"""Seconds spent on the device, without making the host wait for it."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vllm_litelvlm.plugin.metrics import WorkerHistogram


class Stopwatch:
    """Times sections of the worker's code into histograms.

    On a CUDA device a section is bracketed by events, which are read once they have passed: at
    the next section at the earliest.
    """

    _MOST_PENDING = 1024

    def __init__(self) -> None:
        self._pending: deque[tuple[WorkerHistogram, torch.cuda.Event, torch.cuda.Event]] = deque(
            maxlen=self._MOST_PENDING
        )

    @contextmanager
    def time(self, histogram: WorkerHistogram | None, device: torch.device) -> Iterator[None]:
        """Observe the section's seconds; None measures nothing."""
        if histogram is None:
            yield
        elif device.type == "cuda":
            self._collect()
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._pending.append((histogram, start, end))
        else:
            began = time.perf_counter()
            yield
            histogram.observe(time.perf_counter() - began)

    def _collect(self) -> None:
        while self._pending and self._pending[0][2].query():
            histogram, start, end = self._pending.popleft()
            histogram.observe(start.elapsed_time(end) / 1000)
