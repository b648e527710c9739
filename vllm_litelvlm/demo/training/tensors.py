"""What batches consist of."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

SomeBatch = TypeVar("SomeBatch", bound="ClipBatch | LlavaBatch | Segments | MaskBatch")


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


@dataclass(frozen=True)
class Segments:
    """Pictures, and objects in them by their boxes and masks.

    Where a picture is a part of an image, boxes are those in the image.
    ``pixels`` uint8 [images, side, side, 3]; ``owners`` int8 [images, side, side]: the object at
    each pixel. ``targets`` int64 [images, objects]: which objects are meant; ``boxes`` float32
    [images, objects, 4]: theirs, in shares of the image's side.
    """

    pixels: Tensor
    owners: Tensor
    targets: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Rounds(Questions):
    """Conversations about each picture, whose answers point.

    ``pointing`` int64 [images, count]: which of an image's tokens in a row predict [SEG].
    ``guides`` int64 [images, conversations, expressions, length] and ``ends`` int64 [images,
    conversations, expressions]: the expressions as CLIP's text tower reads them.
    """

    pointing: Tensor
    guides: Tensor
    ends: Tensor


@dataclass(frozen=True)
class MaskBatch:
    """Questions, and conversations whose [SEG], in the order of ``rounds``, mean ``segments``."""

    words: LlavaBatch
    rounds: tuple[Rounds, ...]
    segments: Segments


AnyBatch: TypeAlias = ClipBatch | LlavaBatch | Segments | MaskBatch


def on_device(batch: SomeBatch, device: torch.device) -> SomeBatch:
    """The batch with its tensors elsewhere."""
    return replace(batch, **_moved_fields(batch, device))


def _moved(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_moved(one, device) for one in value)
    if isinstance(value, Pictures | Questions | LlavaBatch | Segments):
        return replace(value, **_moved_fields(value, device))
    raise TypeError(type(value))


def _moved_fields(value: Any, device: torch.device) -> dict[str, Any]:
    return {one.name: _moved(getattr(value, one.name), device) for one in fields(value)}
