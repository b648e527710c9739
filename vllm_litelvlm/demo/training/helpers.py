"""Processes that share the work of every step.

One thread in each of two processes trains faster than two threads in one, which wait for each other
at every operation, and far faster where something else runs on the machine. The helpers hold the
same weights, since all take the same steps by the same mean gradient.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vllm_litelvlm.demo.training.models import Models
from vllm_litelvlm.demo.training.schedule import Stage
from vllm_litelvlm.demo.training.settings import TrainingOptions
from vllm_litelvlm.demo.training.tensors import AnyBatch

#: The pipe to one.
Helper: TypeAlias = "Connection[object, Any]"


class Team:
    """This process's models and the helpers."""

    def __init__(self, models: Models, helpers: list[Helper], shared: Tensor) -> None:
        self._models, self._helpers, self._shared = models, helpers, shared

    def step(self, stage: Stage, batch: AnyBatch, rate: float) -> tuple[dict[str, Tensor], Tensor]:
        """Take one step together; the mean losses, and the gradient's length.

        ``batch`` is this process's part; the helpers make theirs.
        """
        models = self._models
        number = models.options.stages.index(stage)
        for helper in self._helpers:
            helper.send((number, models.position.step, rate))
        losses, gradient = models.gradient(stage, batch)
        for row, helper in enumerate(self._helpers, 1):
            theirs = helper.recv()
            gradient += self._shared[row, : len(gradient)]
            losses = {name: value + theirs[name] for name, value in losses.items()}
        if self._helpers:
            count = 1 + len(self._helpers)
            gradient /= count
            losses = {name: value / count for name, value in losses.items()}
            self._shared[0, : len(gradient)] = gradient
            for helper in self._helpers:
                helper.send("go")
        return losses, models.optimiser(stage).step(gradient, rate)

    def share_state(self) -> None:
        """Write the state and let the helpers read it."""
        self._models.save()
        for helper in self._helpers:
            helper.send("load")


@contextmanager
def team(models: Models) -> Iterator[Team]:
    """Start the helpers, if the options want more than one process, and end them."""
    count = models.options.processes - 1
    length = sum(one.length for one in models.optimisers.values())
    shared = torch.zeros((count + 1, length if count else 0)).share_memory_()
    context = get_context("spawn")
    processes, ends = [], []
    if count:
        models.save()
    for rank in range(1, count + 1):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_help, args=(models.options, rank, theirs, shared), daemon=True
        )
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
    try:
        yield Team(models, ends, shared)
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join()


def _help(options: TrainingOptions, rank: int, orders: Helper, shared: Tensor) -> None:
    """Follow orders until the other end of the pipe closes, as it does when its process dies."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    models = Models(options)
    try:
        while True:
            order = orders.recv()
            if order == "load":
                models.load()
                continue
            number, step, rate = order
            stage = options.stages[number]
            losses, gradient = models.gradient(stage, models.batches(stage, rank)(step))
            shared[rank, : len(gradient)] = gradient
            orders.send({name: float(value) for name, value in losses.items()})
            orders.recv()
            models.optimiser(stage).step(shared[0, : len(gradient)].clone(), rate)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
