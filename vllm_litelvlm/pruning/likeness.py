"""Cosines of an image's tokens with each other: all of them, or row by row where few are read."""

import torch
from torch import Tensor, nn

#: Rows of one product on a CPU: of the whole matrix, and of those that are likely to be asked for.
_ROWS, _LIKELY = 128, 32
#: Below this a token has no direction, as for torch's normalize.
_NO_LENGTH = 1e-12


def cosines(tokens: Tensor) -> Tensor:
    """Of every token with every token of its image, float32 [images, patches, patches].

    ``tokens`` [images, patches, width], any float dtype.
    """
    unit = nn.functional.normalize(tokens.float(), dim=-1)
    return unit @ unit.transpose(1, 2)


def mirrored_cosines(tokens: Tensor) -> Tensor:
    """What :func:`cosines` gives, up to rounding, in about half its time on a CPU.

    A CPU computes the upper triangle, some rows at a time, and divides products by lengths
    instead of tokens: what it reads is one image, which fits its cache.
    """
    if tokens.device.type != "cpu":
        return cosines(tokens)
    images, patches, _ = tokens.shape
    whole = torch.empty(images, patches, patches, dtype=torch.float32)
    for rows, square in zip(tokens.float(), whole, strict=True):
        shares = _inverse_lengths(rows)
        for start in range(0, patches, _ROWS):
            some, rest = slice(start, start + _ROWS), slice(start, None)
            products = rows[some] @ rows[rest].T
            products *= shares[some, None] * shares[rest]  # the same for a pair either way round
            square[rest, some] = products.T
            square[some, rest] = products
    return whole


class LikelyRows:
    """Rows of :func:`cosines` on a CPU, of which few are ever computed.

    A product of one row takes nearly as long as one of many. So where a row is asked for that is
    not there, those come with it that are the most likely to be asked for next.

    Args:
        tokens: [images, patches, width], any float dtype.
        count: how many rows an image will be asked for.
    """

    def __init__(self, tokens: Tensor, count: int) -> None:
        self._tokens = tokens.float()
        self._shares = torch.stack([_inverse_lengths(one) for one in self._tokens])
        images, patches, _ = tokens.shape
        self._rows = torch.empty(images * patches, patches)  # in the order of computation
        self._places: list[dict[int, int]] = [{} for _ in range(images)]
        self._at_once = [max(count, 1)] * images  # the first time; likely ones are most of these

    def read(self, wanted: Tensor, likely: Tensor) -> Tensor:
        """One row an image, float32 [images, patches].

        Args:
            wanted: which, int64 [images].
            likely: how likely each row is to be asked for from now on, float32 [images, patches].
        """
        at = []
        for image, (token, places) in enumerate(zip(wanted.tolist(), self._places, strict=True)):
            if token not in places:
                self._compute(image, token, likely[image])
            at.append(places[token])
        return self._rows[at]

    def _compute(self, image: int, token: int, likely: Tensor) -> None:
        places, tokens, shares = self._places[image], self._tokens[image], self._shares[image]
        first = image * len(tokens) + len(places)
        scores = likely.nan_to_num()  # finite, and so above those that are there
        scores[list(places)] = -torch.inf
        scores[token] = torch.inf
        new = scores.topk(min(self._at_once[image], len(tokens) - len(places))).indices
        rows = self._rows[first : first + len(new)]
        torch.mm(tokens[new], tokens.T, out=rows)
        rows *= shares[new, None]
        rows *= shares
        places.update(zip(new.tolist(), range(first, first + len(new)), strict=True))
        self._at_once[image] = _LIKELY


def _inverse_lengths(rows: Tensor) -> Tensor:
    """One over the length of each of [patches, width]."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return lengths.clamp(min=_NO_LENGTH).reciprocal()
