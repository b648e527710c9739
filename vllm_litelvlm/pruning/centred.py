"""Features less their mean (Cen-Prune, 2026): what all tokens have in common tells none apart."""

import torch
from torch import Tensor

#: What the option means, of the methods that have it.
CENTRED = "true or false (Cen-Prune: of tokens less their mean, rare ones first)"


def centred(tokens: Tensor) -> Tensor:
    """Tokens less their image's mean, float32 [images, patches, width]."""
    tokens = tokens.float()
    return tokens - tokens.mean(dim=1, keepdim=True)


def rarity(likeness: Tensor) -> Tensor:
    """How little each token is like the others of its image, from 0 to 1 over them.

    Args:
        likeness: cosines of centred tokens, float32 [images, patches, patches].

    Returns:
        float32 [images, patches]; 1 where all are equally rare.
    """
    own = likeness.diagonal(dim1=1, dim2=2)
    unlike = own - likeness.sum(dim=-1)  # the mean's divisor is the same for all
    lowest, highest = unlike.aminmax(dim=-1, keepdim=True)
    return torch.where(highest > lowest, (unlike - lowest) / (highest - lowest), 1.0)
