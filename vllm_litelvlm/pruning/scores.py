"""The formulas behind the signals: tensors in, float32 scores out."""

import torch
from torch import Tensor, nn


def context_score(logits: Tensor, lengths: Tensor) -> Tensor:
    """How much each patch contributes to [CLS] (paper Eq. 5): ``|| softmax(q k / sqrt d) v ||``.

    One head of full width, as the equation is written. The softmax runs over all patches; over
    the non-retained ones only, the ranking is the same, since its denominator is common.

    Args:
        logits: ``q k / sqrt d`` of the [CLS] query in the last layer, float32 [images, patches],
            up to a constant for each image.
        lengths: ``|| v ||`` of the patches' values, float32 [images, patches].

    Returns:
        float32 [images, patches]; high is kept.
    """
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


def cosine_score(patches: Tensor, texts: Tensor) -> Tensor:
    """The cosine of patches and texts; shapes as for :func:`similarity_score`."""
    unit = nn.functional.normalize
    return similarity_score(unit(patches, dim=-1), unit(texts, dim=-1))


def cls_attention(logits: Tensor) -> Tensor:
    """Attention of [CLS] to the patches, mean over heads.

    Args:
        logits: of the [CLS] query with [CLS] (first) and the patches, float32 [images, heads,
            1 + patches], up to a constant for each head.

    Returns:
        Probabilities, float32 [images, patches].
    """
    attention = logits.softmax(dim=-1)
    mean = attention[:, 0] if attention.shape[1] == 1 else attention.mean(dim=1)
    return mean[:, 1:]
