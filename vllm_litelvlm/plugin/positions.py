"""Kept tokens at their own positions, by what vLLM has for models with several rows of positions.

vLLM keeps three rows of positions a request where a model asks for them (M-RoPE). A language model
of one rotary position reads the first; here the others say what an image token's position is
computed from, once the vision tower has run:

0. the position;
1. of an image token where its image begins, of any other its position;
2. where what follows the token's image, or the token, goes on.

The tower's output tells, for each kept token, how far behind the image's beginning it stands: in
two more channels, whose values below 256 every floating-point type holds exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: How many rows of positions there are; vLLM has no fewer.
ROWS = 3
#: Channels of a token that tell its place.
_CHANNELS = 2
_BASE = 256


@dataclass(frozen=True)
class ImageSpan:
    """The tokens of an image, or of a layer of it, in a prompt, and how many positions they take.

    ``within`` is the number of the span whose positions these tokens share, as a focus does with
    its base; they then take none of their own.
    """

    start: int
    tokens: int
    positions: int
    within: int | None = None


def prompt_positions(tokens: int, images: Sequence[ImageSpan]) -> tuple[Tensor, int]:
    """Rows of positions before the vision tower has run: an image's tokens are consecutive.

    Args:
        tokens: the length of the prompt.
        images: in order; each ``within`` names an earlier one.

    Returns:
        int64 [3, tokens], and how much further than at its token's number the prompt's
        continuation stands.
    """
    rows = torch.arange(tokens).repeat(ROWS, 1)
    rows[2] += 1
    ahead = 0
    firsts: list[int] = []
    for image in images:
        end = image.start + image.tokens
        here = image.start + ahead
        first = here if image.within is None else firsts[image.within]
        firsts.append(first)
        rows[0, image.start : end] = torch.arange(first, first + image.tokens)
        rows[1, image.start : end] = first
        rows[2, image.start : end] = here + image.positions
        ahead += image.positions - image.tokens
        rows[:, end:] += image.positions - image.tokens
    return rows, ahead


def with_offsets(embeddings: Tensor, offsets: Tensor) -> Tensor:
    """Tokens [kept, width] that tell their offsets, int64 [kept]: [kept, width + 2]."""
    told = torch.stack([offsets // _BASE, offsets % _BASE], dim=-1)
    return torch.cat([embeddings, told.to(embeddings.dtype)], dim=-1)


def split_offsets(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`with_offsets`."""
    tokens, told = embeddings.split([embeddings.shape[-1] - _CHANNELS, _CHANNELS], dim=-1)
    high, low = told.long().unbind(dim=-1)
    return tokens, high * _BASE + low


def place_tokens(rows: Tensor, is_image: Tensor, offsets: Tensor, done: int) -> Tensor:
    """Rows of positions with image tokens at their own; no value is read back to the host.

    Args:
        rows: as :func:`prompt_positions` gives them, int64 [3, tokens].
        is_image: bool [tokens].
        offsets: of the image tokens from token ``done`` on, as many as are known, int64.
        done: tokens of the prompt that are placed already.
    """
    is_image = is_image.clone()
    is_image[:done] = False
    number = is_image.cumsum(dim=0) - 1
    known = is_image & (number < len(offsets))
    own = rows[1] + offsets[number.clamp(0, len(offsets) - 1)]
    return torch.cat([torch.where(known, own, rows[0])[None], rows[1:]])


def continuation(rows: Tensor) -> int:
    """How much further than at its token's number a prompt's continuation stands."""
    return int(rows[2, -1]) - rows.shape[1]
