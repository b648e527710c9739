"""The formulas behind the signals: tensors in, float32 scores out."""

import torch
from torch import Tensor


def context_score(cls_query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """How much each patch contributes to [CLS] (paper Eq. 5): ``|| softmax(q k / sqrt d) v ||``.

    One head of full width, as the equation is written. The softmax runs over all patches; over
    the non-retained ones only, the ranking is the same, since its denominator is common.

    Args:
        cls_query: the [CLS] query of the last layer, float32 [images, width].
        keys, values: of the patches, float32 [images, patches, width].

    Returns:
        float32 [images, patches]; high is kept.
    """
    logits: Tensor = torch.einsum("iw,ipw->ip", cls_query, keys) / keys.shape[-1] ** 0.5
    lengths: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return logits.softmax(dim=-1) * lengths


def similarity_score(patches: Tensor, texts: Tensor) -> Tensor:
    """The dot product of patches and texts (paper Eq. 4); nothing is normalised.

    Args:
        patches: aligned patch tokens, float32 [images, patches, width].
        texts: aligned texts, float32 [images, texts, width].

    Returns:
        float32 [images, texts, patches]; low is kept.
    """
    return torch.einsum("itw,ipw->itp", texts, patches)


def cls_attention(cls_query: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Attention of [CLS] to the patches, mean over heads.

    Args:
        cls_query: float32 [images, width].
        keys: of [CLS] (first) and the patches, float32 [images, 1 + patches, width].
        heads: number of attention heads.

    Returns:
        Probabilities, float32 [images, patches].
    """
    images, tokens, width = keys.shape
    query = cls_query.view(images, heads, 1, width // heads)
    key = keys.view(images, tokens, heads, width // heads).transpose(1, 2)
    logits: Tensor = (query @ key.transpose(2, 3)).squeeze(2) * (width // heads) ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)[:, 1:]
