"""What batches consist of."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

AnyBatch = TypeVar("AnyBatch", "ClipBatch", "LlavaBatch")


@dataclass(frozen=True)
class Pictures:
    """Square parts of images, as the vision tower reads them (see its ``features``)."""

    patches: Tensor
    places: Tensor


@dataclass(frozen=True)
class ClipBatch:
    """Pictures, two texts for each, and what every patch shows.

    The first half of the texts are expressions, the second captions; the text of picture ``i`` is
    ``i`` in each half. ``tokens`` and ``ends`` are the text tower's input; ``true`` bool
    [images, texts]: of which pictures each text is true. ``attributes``, ``sides`` and ``weights``
    [images, ...] are :func:`~vllm_litelvlm.demo.training.dense.dense_targets`.
    """

    pictures: Pictures
    tokens: Tensor
    ends: Tensor
    true: Tensor
    attributes: Tensor
    sides: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Questions:
    """Some questions about each picture, with their answers.

    ``tokens`` int64 [images, questions, length], padded on the right. ``learned`` int64 [count]:
    which of all tokens in a row are followed by one of an answer; ``targets`` int64 [count]: by
    which.
    """

    tokens: Tensor
    learned: Tensor
    targets: Tensor


@dataclass(frozen=True)
class LlavaBatch:
    """Pictures, the text before them, and questions in groups of like length."""

    pictures: Pictures
    prefix: Tensor
    groups: tuple[Questions, ...]


def on_device(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """The batch with its tensors elsewhere."""
    return replace(batch, **_moved_fields(batch, device))


def _moved(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_moved(one, device) for one in value)
    if isinstance(value, Pictures | Questions):
        return replace(value, **_moved_fields(value, device))
    raise TypeError(type(value))


def _moved_fields(value: Any, device: torch.device) -> dict[str, Any]:
    return {one.name: _moved(getattr(value, one.name), device) for one in fields(value)}
