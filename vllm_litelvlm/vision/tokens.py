"""Scores by the tokens of texts, of which there may be very many, some at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import to_device
from vllm_litelvlm.pruning.sharpest import token_cosine_score

#: Of copies that are made together.
_BYTES_AT_ONCE = 256 * 2**20


def score_pairs(
    patches: Tensor, tokens: Tensor, own: Tensor, pairs: Sequence[tuple[int, int]]
) -> Tensor:
    """:func:`~vllm_litelvlm.pruning.sharpest.token_cosine_score` of some images and texts.

    Args:
        patches: float32 [images, patches, width].
        tokens: each text as a whole, then its tokens, float32 [texts, 1 + tokens, width].
        own: which tokens are a text's own, bool [texts, tokens].
        pairs: an image and a text each; at least one.

    Returns:
        float32 [pairs, patches].
    """
    # Those that are copied, and once more of length 1.
    rows = 2 * (patches.shape[1] + tokens.shape[1]) * patches.shape[2]
    at_once = max(1, _BYTES_AT_ONCE // 4 // (rows + 4 * patches.shape[1] * tokens.shape[1]))
    parts = []
    for start in range(0, len(pairs), at_once):
        images, texts = zip(*pairs[start : start + at_once], strict=True)
        parts.append(
            token_cosine_score(_some(patches, images), _some(tokens, texts), _some(own, texts))
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _some(rows: Tensor, wanted: Sequence[int]) -> Tensor:
    """Rows of a tensor, which are often all as they are."""
    if list(wanted) == list(range(len(rows))):
        return rows
    return rows.index_select(0, to_device(wanted, rows.device))
