"""Times every method on every size of batch, round by round."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from benchmarks.machine import OtherLoad
from benchmarks.order import balanced
from benchmarks.progress import progress_bar
from benchmarks.selection_inputs import Inputs, Size
from vllm_litelvlm.demo.checkpoint import Geometry
from vllm_litelvlm.pruning.base import Pruner
from vllm_litelvlm.vision.images import needs_features

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
#: A call that takes longer (seconds) is made once a round, a shorter one until so much is spent.
_ENOUGH = 0.25
#: A call that takes longer needs no warming up, not even the first.
_LONG = 5.0
_MOST_CALLS = 50

#: "tower" with a method is the tower with that method working between its blocks.
What = Literal["selection", "guidance", "tower", "texts"]
#: A method (None: the vision tower alone, or the text tower) and what of it is measured.
Task = tuple[What, str | None]


@dataclass(frozen=True)
class Settings:
    """What is measured. ``threads`` are PyTorch's; ``dtype`` is that of features and tower."""

    methods: tuple[str, ...]
    sizes: tuple[Size, ...]
    rounds: int
    dtype: str
    device: str
    threads: int
    geometry: Geometry
    max_gib: float
    seed: int
    output: Path


@dataclass(frozen=True)
class Time:
    """Seconds of each call that was measured. ``method`` is None for the towers alone."""

    what: What
    method: str | None
    calls: tuple[float, ...]


@dataclass(frozen=True)
class Block:
    """One round at one size. ``other_load``: cores that other processes kept busy meanwhile."""

    round: int
    size: Size
    other_load: float
    times: tuple[Time, ...]

    def seconds(self, what: What, method: str | None) -> float | None:
        """The median call, or None where it was not measured."""
        for found in self.times:
            if (found.what, found.method) == (what, method):
                return statistics.median(found.calls)
        return None


def measure(settings: Settings, pruners: dict[str, Pruner], console: Console) -> list[Block]:
    """Measure every round; see :mod:`benchmarks.selection`."""
    return list(blocks(settings, pruners, console))


@torch.inference_mode()
def blocks(settings: Settings, pruners: dict[str, Pruner], console: Console) -> Iterator[Block]:
    """The same block by block."""
    torch.set_num_threads(settings.threads)
    with console.status("Making the vision tower ..."):
        device = torch.device(settings.device)
        inputs = Inputs(settings.geometry, DTYPES[settings.dtype], device, settings.seed)
    every = {size: tasks(settings, inputs, pruners, size) for size in settings.sizes}
    with progress_bar(console, 36) as progress:
        bar = progress.add_task("", total=settings.rounds * sum(map(len, every.values())))
        for number in range(settings.rounds):
            for size in balanced(settings.sizes, number):
                other_load, times = OtherLoad(), []
                for what, method in balanced(every[size], number):
                    place = f"{number + 1}: {size.images} x {size.patches}"
                    progress.update(bar, description=f"round {place}, {method or what}")
                    timed = action(inputs, pruners, (what, method), size)
                    times.append(Time(what, method, _timed(timed, device, first=number == 0)))
                    del timed  # the inputs go before the next ones are made
                    progress.advance(bar)
                yield Block(number, size, other_load.cores(), tuple(times))


def tasks(settings: Settings, inputs: Inputs, pruners: dict[str, Pruner], size: Size) -> list[Task]:
    """What is measured at a size; the tower and guidance where the tower has so many patches."""
    fitting = [
        method
        for method, pruner in pruners.items()
        if inputs.most_bytes(pruner.needs, size) <= settings.max_gib * 2**30
    ]
    found: list[Task] = [("selection", method) for method in fitting]
    if size.patches == inputs.patches:
        found += [("tower", None), ("texts", None)]
        for method in fitting:
            outside = needs_features(pruners[method].needs)
            found.append(("guidance" if outside else "tower", method))
    return found


def action(
    inputs: Inputs, pruners: dict[str, Pruner], task: Task, size: Size
) -> Callable[[], object]:
    """What is timed, with inputs of its own."""
    what, method = task
    if what == "texts":
        return inputs.texts(size)
    if method is None:
        tower = inputs.tower(size)
        return lambda: tower.model(pixel_values=tower.pixel_values).last_hidden_state
    pruner = pruners[method]
    if what == "guidance":
        return inputs.guidance(pruner.needs, size)
    signals = inputs.signals(pruner.needs, size)
    if what == "tower":
        signals = replace(signals, tower=inputs.tower(size))
    return lambda: pruner.select(signals, size.budget)


def _timed(call: Callable[[], object], device: torch.device, first: bool) -> tuple[float, ...]:
    """Seconds of each call, after one to warm up.

    What is not short is warmed up in its ``first`` round alone: later on there is nothing to warm
    but the processor's caches.
    """
    warm_up = _seconds(call, device)
    if warm_up > (_LONG if first else _ENOUGH):
        return (warm_up,)
    calls = min(_MOST_CALLS, 1 + int(_ENOUGH / warm_up))
    return tuple(_seconds(call, device) for _ in range(calls))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
