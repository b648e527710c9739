"""Guidance of models whose visual tokens lie in the language model's own embedding space.

Qwen's vision towers have no text tower beside them, but their merger was trained to speak the
language model's input embeddings. A text is the mean of its tokens' embeddings there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from vllm_litelvlm.pruning.base import Signal, Signals, to_device
from vllm_litelvlm.pruning.scores import cosine_score, similarity_score
from vllm_litelvlm.vision.attention import FROM_ATTENTION
from vllm_litelvlm.vision.side_by_side import side_by_side
from vllm_litelvlm.vision.tokens import token_cosines, word_cosines

#: What stands behind the end of a text that is shorter than others.
NO_TOKEN = -1
#: How many tokens of a text count: its mean hardly changes beyond, but its memory does.
LONGEST_TEXT = 256


@dataclass(frozen=True)
class TokenGrid:
    """A batch of images of one grid of visual tokens, as they come from a tower's merger.

    ``features`` is [images, tokens, width], in raster order; its first ``embedding_width`` channels
    are the language model's input embeddings, others are added to deeper layers (deepstack).
    ``scores`` has the needed signals of the tower's last attention
    (:class:`~vllm_litelvlm.vision.attention.LastAttention`).
    """

    features: Tensor
    columns: int
    embedding_width: int
    scores: Mapping[Signal, Tensor] = field(default_factory=dict)


def token_rows(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The beginning of each text, int32 [texts, tokens of the longest], without special tokens."""
    encoded = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    rows = [ids[:LONGEST_TEXT] for ids in encoded]
    longest = max(map(len, rows))
    padded = [[*row, *[NO_TOKEN] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int32)


class EmbeddingGuidance:
    """Text and token meet in the embedding space; importance is the tower's last attention.

    Args:
        embed: the language model's input embeddings of token ids, [tokens] to [tokens, width].
    """

    available: ClassVar[frozenset[Signal]] = FROM_ATTENTION | {
        Signal.FEATURES,
        Signal.PROJECTED,
        Signal.SIMILARITY,
        Signal.COSINE,
        Signal.TOKEN_COSINE,
        Signal.WORD_COSINE,
    }

    def __init__(self, embed: Callable[[Tensor], Tensor]) -> None:
        self._embed = embed

    @torch.no_grad()
    def signals(
        self,
        images: TokenGrid,
        text_ids: Sequence[Tensor],
        needs: frozenset[Signal],
        word_ids: Sequence[Tensor] = (),
    ) -> Signals:
        """See :class:`vllm_litelvlm.vision.guidance.Guidance`.

        SIMILARITY and COSINE are of a visual token's input embedding and a text's mean embedding;
        TOKEN_COSINE and WORD_COSINE of single ones; PROJECTED is the visual token's input
        embedding; the others are the grid's scores.
        """
        features = images.features
        projected = features[..., : images.embedding_width].float()
        values: dict[Signal, Tensor] = {Signal.FEATURES: features, **images.scores}
        if Signal.PROJECTED in needs:
            values[Signal.PROJECTED] = projected
        if needs & {Signal.SIMILARITY, Signal.COSINE}:
            texts = side_by_side(self._text_embeddings(text_ids, projected))
            if Signal.SIMILARITY in needs:
                values[Signal.SIMILARITY] = similarity_score(projected, texts)
            if Signal.COSINE in needs:
                values[Signal.COSINE] = cosine_score(projected, texts)
        if Signal.TOKEN_COSINE in needs:
            texts_of, _ = _listed(text_ids)
            values[Signal.TOKEN_COSINE] = token_cosines(
                projected, texts_of, partial(self._tokens_of, device=features.device)
            )
        if Signal.WORD_COSINE in needs:
            values[Signal.WORD_COSINE] = word_cosines(projected, word_ids, self._embed)
        return Signals(
            images=len(features),
            patches=features.shape[1],
            device=features.device,
            text_counts=[len(ids) for ids in text_ids],
            values=values,
            row_length=images.columns,
            word_counts=[len(ids) for ids in word_ids],
        )

    def _tokens_of(
        self, texts: list[tuple[int, ...]], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Of texts by their ids, what :func:`token_cosines` asks for."""
        longest = max(1, *map(len, texts))
        own = [[place < len(text) for place in range(longest)] for text in texts]
        ids = to_device([[*text, *[0] * (longest - len(text))] for text in texts], device)
        tokens = self._embed(ids.flatten()).float().view(*ids.shape, -1)
        own_on_device = to_device(own, device, torch.bool)
        shares = own_on_device.float() / own_on_device.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.cat([shares[:, None] @ tokens, tokens], dim=1), own_on_device

    def _text_embeddings(self, text_ids: Sequence[Tensor], tokens: Tensor) -> list[Tensor]:
        """Each image's texts, float32 [texts, width of tokens]; equal texts are embedded once."""
        counts = [len(ids) for ids in text_ids]
        by_image, different = _listed(text_ids)
        texts = [text for own in by_image for text in own]
        if not different:
            return [tokens.new_empty(0, tokens.shape[-1]) for _ in counts]
        device = tokens.device
        all_ids = [token for text in different for token in text]
        owners = [number for text, number in different.items() for _ in text]
        both = to_device([*all_ids, *owners], device)  # one copy from the host
        ids, owner = both.tensor_split((len(all_ids),))
        embeddings = self._embed(ids).float()
        shares = to_device([len(text) for text in different], device).float()[:, None]
        sums = embeddings.new_zeros(len(different), embeddings.shape[1])
        means = sums.index_add_(0, owner, embeddings) / shares.clamp(min=1)
        rows = to_device([different[text] for text in texts], device)
        return list(means.index_select(0, rows).split(counts))


def _listed(
    text_ids: Sequence[Tensor],
) -> tuple[list[list[tuple[int, ...]]], dict[tuple[int, ...], int]]:
    """The tokens of every text of every image, and the different ones among them, numbered."""
    listed: dict[int, list[tuple[int, ...]]] = {}  # the frames of a video share their texts
    for ids in text_ids:
        if id(ids) not in listed:
            listed[id(ids)] = [tuple(one for one in row if one != NO_TOKEN) for row in ids.tolist()]
    by_image = [listed[id(ids)] for ids in text_ids]
    different = dict.fromkeys(text for own in by_image for text in own)
    return by_image, {text: number for number, text in enumerate(different)}
