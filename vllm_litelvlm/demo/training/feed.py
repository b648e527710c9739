"""Batches in the order of the steps, made here or ahead of time by other processes."""

from collections.abc import Iterator
from itertools import count
from multiprocessing import get_context

import torch
from torch.utils.data import DataLoader, Dataset

from vllm_litelvlm.demo.training.batches import BatchMaker
from vllm_litelvlm.demo.training.tensors import ClipBatch, LlavaBatch

AnyBatch = ClipBatch | LlavaBatch

#: More steps than any stage has.
_STEPS = 2**31


def feed(maker: BatchMaker, first: int, workers: int) -> Iterator[AnyBatch]:
    """The batches from a step on.

    Without ``workers`` each is made when it is asked for, which on a CPU is best: workers would
    take the cores that the training needs. Theirs come through shared memory.
    """
    if not workers:
        return (maker(step) for step in count(first))
    # Forks of a process that has imported all of this begin at once.
    context = get_context("forkserver")
    context.set_forkserver_preload([BatchMaker.__module__])
    loader = DataLoader(
        _Batches(maker),
        batch_size=None,
        sampler=range(first, _STEPS),
        num_workers=workers,
        multiprocessing_context=context,
        generator=torch.Generator(),  # not the one that the weights start from
    )
    return iter(loader)


class _Batches(Dataset[AnyBatch]):
    """Batches by their steps."""

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker

    def __getitem__(self, step: int) -> AnyBatch:
        return self._maker(step)
