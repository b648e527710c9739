"""What the worker is told of an item, in one tensor: every field costs three processes time."""

import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_litelvlm.plugin.plan import Plan, WorkOrder

#: Bytes of the key and of the name, texts, tokens of each, and words.
_HEADER = struct.Struct("<5i")


@dataclass(frozen=True)
class Parcel:
    """An item's order, its picture's key, and its texts' token ids, int32 [texts, length].

    ``word_ids``: of the texts' words by the language model's tokenizer, int32 [words].
    ``name``: what vLLM's caches know the item by, in hexadecimal digits.
    """

    order: WorkOrder
    key: bytes
    text_ids: Tensor
    word_ids: Tensor
    name: str

    @classmethod
    def unpack(cls, tensor: Tensor) -> "Parcel":
        """The inverse of :func:`pack`, for a tensor on the CPU."""
        data = tensor.numpy().tobytes()
        key_bytes, name_bytes, texts, length, words = _HEADER.unpack_from(data)
        ids = np.frombuffer(data, np.int32, texts * length + words, _HEADER.size).copy()
        key_from = _HEADER.size + ids.nbytes
        name_from = key_from + key_bytes
        order_from = name_from + name_bytes
        return cls(
            WorkOrder.decode(data[order_from:]),
            data[key_from:name_from],
            torch.from_numpy(ids[: texts * length]).view(texts, length),
            torch.from_numpy(ids[texts * length :]),
            data[name_from:order_from].hex(),
        )


def pack(plan: Plan, key: bytes, text_ids: Tensor, word_ids: Tensor, name: str) -> Tensor:
    """A parcel as vLLM carries it, uint8 [bytes].

    Args:
        plan: of the item.
        key: of its picture.
        text_ids: of the plan's texts, int32 [texts, length].
        word_ids: of their words, int32 [words].
        name: of the item, as :attr:`Parcel.name`.
    """
    ids, words, called = text_ids.numpy(), word_ids.numpy(), bytes.fromhex(name)
    header = _HEADER.pack(len(key), len(called), *ids.shape, len(words))
    data = header + ids.tobytes() + words.tobytes() + key + called + WorkOrder.encode(plan)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
