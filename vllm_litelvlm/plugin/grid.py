"""Positions of models whose rotary embedding has a row each for time, height and width (M-RoPE).

Before the vision tower has run, the first row of a prompt's positions is final: the time of every
visual token, and all of every word. Where a kept token stands in its picture is known only to the
tower's output, which tells it in further channels; the other two rows are computed from both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import to_device

#: Time, height and width.
ROWS = 3
#: Channels of a token that tell its place, two bytes a row, exact in every floating-point type.
CHANNELS = 2 * ROWS
_BASE = 256


class Placing(StrEnum):
    """Where the language model reads a picture's tokens."""

    #: All of them, each at its place in the grid.
    WHOLE = "whole"
    #: Those that are kept, each at its place in the grid.
    ORIGINAL = "original"
    #: Those that are kept, one behind the other as words are.
    COMPACT = "compact"


@dataclass(frozen=True)
class Span:
    """Consecutive visual tokens of a prompt, of pictures that share one grid.

    Args:
        start: the first one's number in the prompt.
        tokens: of each picture.
        rows: of the grid.
        columns: of the grid.
        placing: of the tokens.
        times: of each picture, in positions behind the first; one picture by default.
        behind: tokens of a method that follow the picture.
    """

    start: int
    tokens: int
    rows: int
    columns: int
    placing: Placing
    times: tuple[int, ...] = (0,)
    behind: int = 0

    @property
    def end(self) -> int:
        """The number of what follows in the prompt."""
        return self.start + self.tokens * len(self.times)

    @property
    def positions(self) -> int:
        """How many positions of the language model they take up."""
        if self.placing is Placing.COMPACT:
            return self.end - self.start
        return max(self.times[-1] + 1, max(self.rows, self.columns) + self.behind)

    def token_places(self, indices: Tensor | None, device: torch.device) -> Tensor:
        """What the tokens tell of their places, int64 [pictures, tokens, 3].

        Args:
            indices: as :attr:`~vllm_litelvlm.pruning.base.Selection.indices`, picture by picture;
                None where all tokens stay.
            device: of the tokens.
        """
        shape = (len(self.times), self.tokens)
        if self.placing is Placing.COMPACT:
            return torch.zeros(*shape, ROWS, dtype=torch.int64, device=device)
        if self.placing is Placing.WHOLE or indices is None:
            indices = torch.arange(self.tokens, device=device).expand(shape)
        return self._places(indices.view(shape))

    def _places(self, indices: Tensor) -> Tensor:
        """Time, height and width behind those of the first picture's corner.

        ``indices`` is int64 [pictures, tokens]; what follows a picture has the numbers behind the
        grid's last, and stands on the diagonal beyond its corner. Returns [pictures, tokens, 3].
        """
        last = self.rows * self.columns
        beyond = (indices - last).clamp(min=0)
        is_beyond = indices >= last
        height = torch.where(is_beyond, self.rows + beyond, indices // self.columns)
        width = torch.where(is_beyond, self.columns + beyond, indices % self.columns)
        time = torch.zeros_like(indices)
        if self.times != (0,):
            time += to_device(list(self.times), indices.device)[:, None]
        return torch.stack([time, height, width], dim=-1)

    def initial(self) -> Tensor:
        """Rows behind the span's beginning, before the tower has run: int64 [3, tokens]."""
        count = self.end - self.start
        if self.placing is Placing.COMPACT:
            return torch.arange(count).expand(ROWS, -1)
        if self.placing is Placing.WHOLE:
            return self.token_places(None, torch.device("cpu")).flatten(0, 1).T
        time = torch.tensor(self.times).repeat_interleave(self.tokens)
        return torch.stack([time, torch.zeros_like(time), torch.zeros_like(time)])


def prompt_positions(tokens: int, spans: Sequence[Span]) -> tuple[Tensor, int]:
    """Rows of positions before the vision tower has run.

    Args:
        tokens: the length of the prompt.
        spans: in order.

    Returns:
        int64 [3, tokens], and how much further than at its token's number the prompt's
        continuation stands.
    """
    rows = torch.arange(tokens).repeat(ROWS, 1)
    ahead = 0
    for span in spans:
        rows[:, span.start : span.end] = span.start + ahead + span.initial()
        rows[:, span.end :] += span.positions - (span.end - span.start)
        ahead += span.positions - (span.end - span.start)
    return rows, ahead


def with_places(embeddings: Tensor, places: Tensor) -> Tensor:
    """Tokens [kept, width] that tell their places, int64 [kept, 3]: [kept, width + 6]."""
    told = torch.cat([places // _BASE, places % _BASE], dim=-1)
    return torch.cat([embeddings, told.to(embeddings.dtype)], dim=-1)


def split_places(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`with_places`."""
    tokens, told = embeddings.split([embeddings.shape[-1] - CHANNELS, CHANNELS], dim=-1)
    high, low = told.long().chunk(2, dim=-1)
    return tokens, high * _BASE + low


def place_tokens(rows: Tensor, is_visual: Tensor, places: Tensor, done: int) -> Tensor:
    """Rows of positions with visual tokens at their own; no value is read back to the host.

    The first row stays as it is, so that tokens may be placed again.

    Args:
        rows: as :func:`prompt_positions` gives them, int64 [3, tokens].
        is_visual: bool [tokens].
        places: of the visual tokens from token ``done`` on, as many as are known, int64 [known, 3].
        done: tokens of the prompt that are placed already.
    """
    is_visual = is_visual.clone()
    is_visual[:done] = False
    number = is_visual.cumsum(dim=0) - 1
    known = is_visual & (number < len(places))
    own = places[number.clamp(0, len(places) - 1)].T
    corner = rows[0] - own[0]
    return torch.stack([rows[0], *(torch.where(known, corner + own[1:], rows[1:]))])


def continuation(rows: Tensor) -> int:
    """How much further than at its token's number the continuation of a prompt stands.

    Of a prompt that ends in words, or in a picture of which all tokens stay.
    """
    return int(rows[:, -1].max()) + 1 - rows.shape[1]
