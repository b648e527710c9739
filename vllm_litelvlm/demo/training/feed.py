"""Batches in the order of the steps, made here or ahead of time by other processes."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing import get_context
from random import Random

import torch
from torch.utils.data import DataLoader, Dataset

from vllm_litelvlm.demo.training.batches import BatchMaker
from vllm_litelvlm.demo.training.tensors import AnyBatch

#: More steps than any stage has.
_STEPS = 2**31
#: How many batches may come again.
_REMEMBERED = 256


def feed(
    maker: Callable[[int], AnyBatch], first: int, workers: int, repeats: int = 1
) -> Iterator[AnyBatch]:
    """The batches from a step on.

    Without ``workers`` each is made when it is asked for, which on a CPU is best: workers would
    take the cores that the training needs. Theirs come through shared memory, each ``repeats``
    times.
    """
    if not workers:
        return (maker(step) for step in count(first))
    # Forks of a process that has imported all of this begin at once.
    context = get_context("forkserver")
    context.set_forkserver_preload([BatchMaker.__module__])
    loader = DataLoader(
        _Batches(maker),
        batch_size=None,
        sampler=range(first // repeats, _STEPS),
        num_workers=workers,
        multiprocessing_context=context,
        generator=torch.Generator(),  # not the one that the weights start from
    )
    return _again(iter(loader), repeats)


def _again(batches: Iterator[AnyBatch], repeats: int) -> Iterator[AnyBatch]:
    """Every batch, and after each as many of the late ones as ``repeats`` is more than one."""
    random = Random(0)
    late: deque[AnyBatch] = deque(maxlen=_REMEMBERED)
    for batch in batches:
        yield batch
        yield from (random.choice(late) for _ in range(repeats - 1) if late)
        late.append(batch)


class _Batches(Dataset[AnyBatch]):
    """Batches by their steps."""

    def __init__(self, maker: Callable[[int], AnyBatch]) -> None:
        self._maker = maker

    def __getitem__(self, step: int) -> AnyBatch:
        return self._maker(step)
