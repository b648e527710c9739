"""The memory of a Pillow image as a tensor, without the two copies of Pillow's own way to NumPy.

Pillow shares it by the Arrow C data interface (arrow.apache.org/docs/format/CDataInterface.html),
whose C structure is spelled out here, because no package that reads it is otherwise needed.
"""

import ctypes
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Pillow keeps a fourth, unused byte with every pixel of RGB.
_BYTES = 4


class _ArrowArray(ctypes.Structure):
    """Its beginning, up to what is read here."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "nulls", "offset", "buffer_count", "children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("child", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]

_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Shared:
    """Memory as NumPy takes it, alive as long as an array of it is."""

    def __init__(self, address: int, shape: tuple[int, ...], owner: Any) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": "|u1",
            "version": 3,
        }
        self._owner = owner


def shared_pixels(image: object) -> Tensor | None:
    """An image's pixels where they lie, uint8 [4, height, width]; the fourth channel is unused.

    None for all but RGB images of Pillow that lie in one piece (up to 4 million pixels, by Pillow's
    default), and for Pillow before 11.2. Nobody may write to it.
    """
    if not isinstance(image, Image.Image) or image.mode != "RGB":
        return None
    # Pillow 12 shares both all the same, the one as no memory and the other with gaps.
    if 0 in image.size or Image.core.get_alignment() != 1:  # type: ignore[attr-defined]
        return None
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):  # an older Pillow; several pieces
        return None
    pixels = _ArrowArray.from_address(_pointer(capsule, b"arrow_array"))
    address = pixels.child[0].contents.buffers[1]
    shape = (image.height, image.width, _BYTES)
    return torch.from_numpy(np.asarray(_Shared(address, shape, capsule))).permute(2, 0, 1)
