"""Texts of several images side by side, though each has as many as it likes."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import to_device


def side_by_side(texts: Sequence[Tensor]) -> Tensor:
    """Each image's texts, [images, most texts, width]; what stands past an image's own is any."""
    most = max(map(len, texts))
    if all(len(some) == most for some in texts):
        return torch.stack(list(texts))
    rows = torch.cat(list(texts))
    starts = itertools.accumulate(map(len, texts[:-1]), initial=0)
    places = [min(start + text, len(rows) - 1) for start in starts for text in range(most)]
    index = to_device(places, rows.device)
    return rows.index_select(0, index).view(len(texts), most, rows.shape[1])
