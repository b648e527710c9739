"""Scores by single tokens of texts, of which there may be very many: some at a time.

An image's texts may be any number and of any length, and a batch's many images may have the same
ones; what is computed of a text is computed once, and what is copied at once is bounded.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from vllm_litelvlm.pruning.base import to_device
from vllm_litelvlm.pruning.scores import cosine_score
from vllm_litelvlm.pruning.sharpest import token_cosine_score
from vllm_litelvlm.vision.side_by_side import side_by_side

#: Of copies that are made together.
_BYTES_AT_ONCE = 256 * 2**20
#: Texts whose tokens are computed together.
_TEXTS_AT_ONCE = 64

#: What a text is told from others by.
Text = TypeVar("Text")


def token_cosines(
    patches: Tensor,
    texts: Sequence[Sequence[Text]],
    tokens_of: Callable[[list[Text]], tuple[Tensor, Tensor]],
) -> Tensor:
    """``Signal.TOKEN_COSINE`` of a batch of images.

    Args:
        patches: float32 [images, patches, width].
        texts: of each image; equal ones are one.
        tokens_of: of some different texts each as a whole and then its tokens, float32 [texts,
            1 + tokens, width], and which tokens are its own, bool [texts, tokens].

    Returns:
        float32 [images, most texts, patches].
    """
    images = [image for image, own in enumerate(texts) for _ in own]
    places = defaultdict[Text, list[int]](list)
    for place, text in enumerate(text for own in texts for text in own):
        places[text].append(place)
    different, order, parts = list(places), list[int](), list[Tensor]()
    for start in range(0, len(different), _TEXTS_AT_ONCE):
        some = different[start : start + _TEXTS_AT_ONCE]
        tokens, own = tokens_of(some)
        asked = sorted((at, number) for number, text in enumerate(some) for at in places[text])
        order += [place for place, _ in asked]
        pairs = [(images[place], number) for place, number in asked]
        parts += _score_pairs(patches, tokens, own, pairs)
    if not parts:
        return patches.new_empty(len(patches), 0, patches.shape[1])
    scores = parts[0] if len(parts) == 1 else torch.cat(parts)
    back = sorted(range(len(order)), key=order.__getitem__)
    return side_by_side(_some(scores, back).split([len(own) for own in texts]))


def _score_pairs(
    patches: Tensor, tokens: Tensor, own: Tensor, pairs: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """:func:`token_cosine_score` of images and texts, by numbers, [some pairs, patches] each."""
    # Those that are copied, and once more of length 1.
    rows = 2 * (patches.shape[1] + tokens.shape[1]) * patches.shape[2]
    at_once = max(1, _BYTES_AT_ONCE // 4 // (rows + 4 * patches.shape[1] * tokens.shape[1]))
    parts = []
    for start in range(0, len(pairs), at_once):
        images, texts = zip(*pairs[start : start + at_once], strict=True)
        parts.append(
            token_cosine_score(_some(patches, images), _some(tokens, texts), _some(own, texts))
        )
    return parts


def word_cosines(
    patches: Tensor, words: Sequence[Tensor], embed: Callable[[Tensor], Tensor]
) -> Tensor:
    """``Signal.WORD_COSINE`` of a batch of images.

    Args:
        patches: behind the projector, float32 [images, patches, width].
        words: token ids of each image's words, integer [words], on the CPU.
        embed: input embeddings of token ids, [tokens] to [tokens, width].

    Returns:
        float32 [images, most words, patches].
    """
    lists = [tuple(one.tolist()) for one in words]
    number = {own: number for number, own in enumerate(dict.fromkeys(lists))}
    most = max(map(len, number), default=0)
    if most == 0:
        return patches.new_empty(len(patches), 0, patches.shape[1])
    ids = to_device([[*own, *[0] * (most - len(own))] for own in number], patches.device)
    different = nn.functional.normalize(embed(ids.flatten()).float(), dim=-1).view(*ids.shape, -1)
    row = 4 * (most + patches.shape[1]) * patches.shape[2]
    at_once = max(1, _BYTES_AT_ONCE // row)
    parts = []
    for start in range(0, len(lists), at_once):
        some = slice(start, start + at_once)
        theirs = _some(different, [number[own] for own in lists[some]])
        parts.append(cosine_score(patches[some], theirs))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _some(rows: Tensor, wanted: Sequence[int]) -> Tensor:
    """Rows of a tensor, which are often all as they are."""
    if list(wanted) == list(range(len(rows))):
        return rows
    return rows.index_select(0, to_device(wanted, rows.device))
