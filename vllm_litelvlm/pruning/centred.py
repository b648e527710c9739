"""Features less their mean (Cen-Prune, 2026): what all tokens have in common tells none apart."""

import torch
from torch import Tensor, nn

#: What the option means, of the methods that have it.
CENTRED = "true or false (Cen-Prune: of tokens less their mean, rare ones first)"


def centred(tokens: Tensor) -> Tensor:
    """Tokens less their image's mean, float32 [images, patches, width]."""
    tokens = tokens.float()
    return tokens - tokens.mean(dim=1, keepdim=True)


def rarity(tokens: Tensor) -> Tensor:
    """How little each token is like the others of its image, from 0 to 1 over them.

    By cosines, of whose matrix the row sums are enough: the cosines to the sum of all directions.

    Args:
        tokens: centred, float32 [images, patches, width].

    Returns:
        float32 [images, patches]; 1 where all are equally rare.
    """
    unit = nn.functional.normalize(tokens, dim=-1)
    others = unit.sum(dim=1, keepdim=True) - unit
    unlike = -(unit * others).sum(dim=-1)  # the mean's divisor is the same for all
    lowest, highest = unlike.aminmax(dim=-1, keepdim=True)
    return torch.where(highest > lowest, (unlike - lowest) / (highest - lowest), 1.0)
