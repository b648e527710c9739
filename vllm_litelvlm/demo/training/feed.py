"""Batches in the order of the steps, made here or ahead of time by other processes."""

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from vllm_litelvlm.demo.training.batches import BatchMaker
from vllm_litelvlm.demo.training.tensors import ClipBatch, LlavaBatch

AnyBatch = ClipBatch | LlavaBatch


@contextmanager
def feed(maker: BatchMaker, first: int, workers: int) -> Iterator[Iterator[AnyBatch]]:
    """The batches from a step on.

    Without ``workers`` each is made when it is asked for, which on a CPU is best: workers would
    take the cores that the training needs.
    """
    if not workers:
        yield _here(maker, first)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = [pool.submit(maker, first + ahead) for ahead in range(2 * workers)]
        try:
            yield _ahead(maker, first + len(waiting), waiting, pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _here(maker: BatchMaker, step: int) -> Iterator[AnyBatch]:
    while True:
        yield maker(step)
        step += 1


def _ahead(
    maker: BatchMaker, step: int, waiting: list["Future[AnyBatch]"], pool: ProcessPoolExecutor
) -> Iterator[AnyBatch]:
    while True:
        batch = waiting.pop(0).result()
        waiting.append(pool.submit(maker, step))
        step += 1
        yield batch
