"""What the worker is told of an item, in one tensor: every field costs three processes time."""

import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_litelvlm.plugin.plan import Plan, WorkOrder

#: Bytes of the key, texts, and tokens of each.
_HEADER = struct.Struct("<3i")


@dataclass(frozen=True)
class Parcel:
    """An item's order, its picture's key, and its texts' token ids, int32 [texts, length]."""

    order: WorkOrder
    key: bytes
    text_ids: Tensor

    @classmethod
    def unpack(cls, tensor: Tensor) -> "Parcel":
        """The inverse of :func:`pack`, for a tensor on the CPU."""
        data = tensor.numpy().tobytes()
        key_bytes, texts, length = _HEADER.unpack_from(data)
        ids = np.frombuffer(data, np.int32, texts * length, _HEADER.size).reshape(texts, length)
        key_from = _HEADER.size + ids.nbytes
        order_from = key_from + key_bytes
        return cls(
            WorkOrder.decode(data[order_from:]),
            data[key_from:order_from],
            torch.from_numpy(ids.copy()),
        )


def pack(plan: Plan, key: bytes, text_ids: Tensor) -> Tensor:
    """A parcel as vLLM carries it, uint8 [bytes].

    Args:
        plan: of the item.
        key: of its picture.
        text_ids: of the plan's texts, int32 [texts, length].
    """
    ids = text_ids.numpy()
    data = _HEADER.pack(len(key), *ids.shape) + ids.tobytes() + key + WorkOrder.encode(plan)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
