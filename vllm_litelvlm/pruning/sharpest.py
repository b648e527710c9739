"""EADP's relevance: the cosine of a text as a whole, and of its tokens that point sharply."""

import torch
from torch import Tensor

from vllm_litelvlm.pruning.kernels import kernels_take
from vllm_litelvlm.pruning.scores import cosine_score

#: By what cosines and entropies are multiplied.
_SHARPNESS = 100.0
#: The part of a text's tokens that count.
_PART = 0.2


def token_cosine_score(patches: Tensor, tokens: Tensor, own: Tensor) -> Tensor:
    """Half the cosine of a text as a whole, half the mean of its sharpest tokens' cosines.

    A token points at patches as a softmax of -100 times its cosines does. Of a text's own tokens
    the fifth with the lowest entropy, at least one, are weighed by a softmax of -100 times that.

    Args:
        patches: aligned patch tokens, float32 [pairs, patches, width]; a pair is an image and one
            of its texts.
        tokens: the text as a whole, then its aligned tokens, float32 [pairs, 1 + tokens, width].
        own: which tokens are the text's own, at least one of each, bool [pairs, tokens].

    Returns:
        float32 [pairs, patches].
    """
    cosines = cosine_score(patches, tokens)
    if kernels_take(cosines):
        from vllm_litelvlm.pruning.kernels.sharpest import mix_in_one_launch

        return mix_in_one_launch(cosines, own, _SHARPNESS, _PART)
    return mix(cosines, own)


def mix(cosines: Tensor, own: Tensor) -> Tensor:
    """The same of the cosines, float32 [pairs, 1 + tokens, patches]."""
    whole, by_token = cosines[:, 0], cosines[:, 1:]
    pointing = (-_SHARPNESS * by_token).log_softmax(dim=-1)
    entropy = (pointing.exp() * pointing).sum(dim=-1).neg().masked_fill(~own, torch.inf)
    most = (own.sum(dim=-1, keepdim=True) * _PART).floor().clamp(min=1)
    place = torch.sort(entropy, dim=-1, stable=True).indices.argsort(dim=-1)
    weights = (-_SHARPNESS * entropy).masked_fill(place >= most, -torch.inf).softmax(dim=-1)
    return (whole + (weights[:, None] @ by_token).squeeze(1)) / 2
