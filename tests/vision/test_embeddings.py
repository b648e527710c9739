"""Guidance without a CLIP: the tower's last attention, and the language model's embeddings."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.rederivation import Calls
from tests.pruning.test_eadp import sharpest
from vllm_litelvlm.pruning.base import Signal
from vllm_litelvlm.vision import attention
from vllm_litelvlm.vision.attention import FROM_ATTENTION, LastAttention
from vllm_litelvlm.vision.embeddings import NO_TOKEN, EmbeddingGuidance, TokenGrid

IMAGES, TOKENS, CELL, HEADS, WIDTH = 2, 12, 4, 3, 8


@pytest.fixture
def last() -> LastAttention:
    generator = torch.Generator().manual_seed(3)
    shape = (5, IMAGES, TOKENS, CELL, HEADS, WIDTH)
    return LastAttention(*torch.randn(shape, generator=generator), heads=HEADS)


@pytest.fixture
def embedding() -> nn.Embedding:
    torch.manual_seed(5)
    return nn.Embedding(50, 6)


def received(last: LastAttention, image: int) -> list[float]:
    """By loops over heads, tokens that attend and patches."""
    found = [0.0] * TOKENS
    for head in range(HEADS):
        keys = last.rotated_key[image, :, :, head].reshape(-1, WIDTH).double()
        for asking in range(TOKENS):
            query = last.rotated_query[image, asking, :, head].double().mean(dim=0)
            probabilities = torch.softmax(keys @ query / WIDTH**0.5, dim=0).tolist()
            for patch, probability in enumerate(probabilities):
                found[patch // CELL] += probability / CELL / HEADS / TOKENS
    return found


@pytest.mark.parametrize("at_once", [1, 2**26])
def test_attention_that_tokens_receive(
    last: LastAttention, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(attention, "_BYTES_AT_ONCE", at_once)
    for image, scores in enumerate(last.received):
        assert scores.tolist() == pytest.approx(received(last, image), rel=1e-5)


def test_context_is_by_the_token_that_receives_most(last: LastAttention) -> None:
    found = last.signals(FROM_ATTENTION)
    for image in range(IMAGES):
        scores = received(last, image)
        first = scores.index(max(scores))
        query = last.query[image, first].double().mean(dim=0).flatten()
        keys, values = (
            one[image].double().reshape(TOKENS * CELL, -1) for one in (last.key, last.value)
        )
        scale = (HEADS * WIDTH) ** 0.5
        plain = torch.softmax(keys @ query / scale, dim=0) * values.norm(dim=1)
        unit = nn.functional.normalize
        cosine = unit(keys, dim=1) @ unit(query, dim=0)
        normalised = torch.softmax(cosine / scale, dim=0) * values.norm(dim=1)
        for signal, expected in (
            (Signal.CONTEXT, plain),
            (Signal.CONTEXT_NORMALISED, normalised),
        ):
            cells = expected.view(TOKENS, CELL).mean(dim=1)
            torch.testing.assert_close(found[signal][image].double(), cells, rtol=1e-5, atol=1e-6)
        mean = last.key[image].mean(dim=(1, 2))
        torch.testing.assert_close(found[Signal.KEYS][image], mean, rtol=1e-5, atol=1e-6)


def test_heads_on_several_ranks_give_what_one_rank_gives(last: LastAttention) -> None:
    """Each rank's sums are added, as an all-reduce adds them."""
    whole = last.signals(FROM_ATTENTION)
    parts = [
        LastAttention(
            *(
                one[:, :, :, heads]
                for one in (
                    last.query, last.key, last.value, last.rotated_query, last.rotated_key
                )
            ),
            heads=HEADS,
        )
        for heads in (slice(0, 1), slice(1, 3))
    ]  # fmt: skip
    # Every rank makes the same calls: what the other one sums is recorded, call by call.
    recorded: list[list[Tensor]] = [[], []]
    for _ in range(5):  # a later sum depends on the earlier ones
        for rank, part in enumerate(parts):
            mine: list[Tensor] = []
            other = recorded[1 - rank]

            def total(
                tensor: Tensor, mine: list[Tensor] = mine, other: Sequence[Tensor] = other
            ) -> Tensor:
                mine.append(tensor)
                return tensor + other[len(mine) - 1] if len(mine) <= len(other) else tensor

            found = replace(part, total=total).signals(FROM_ATTENTION)
            recorded[rank] = mine
    for signal, expected in whole.items():
        torch.testing.assert_close(found[signal], expected, rtol=1e-5, atol=1e-6)


def text_ids(*texts: Sequence[int]) -> Tensor:
    longest = max(map(len, texts), default=1)
    rows = [[*text, *[NO_TOKEN] * (longest - len(text))] for text in texts]
    return torch.tensor(rows, dtype=torch.int32).view(len(texts), longest)


def test_text_is_the_mean_of_its_embeddings(embedding: nn.Embedding) -> None:
    """Deeper channels have no say, texts of other images neither, nor what pads a text."""
    calls: list[int] = []

    def embed(ids: Tensor) -> Tensor:
        calls.append(len(ids))
        found: Tensor = embedding(ids)
        return found

    features = torch.randn(3, TOKENS, 6 + 4)
    ids = [text_ids([3, 9, 9], [7]), text_ids(), text_ids([7])]
    needs = frozenset({Signal.SIMILARITY, Signal.COSINE, Signal.PROJECTED})
    signals = EmbeddingGuidance(embed).signals(TokenGrid(features, 4, 6), ids, needs)
    assert signals.text_counts == [2, 0, 1]
    assert (signals.columns, signals.patches) == (4, TOKENS)
    assert calls == [4]  # the text that two images share is embedded once
    assert torch.equal(signals.patch_tokens, features)
    assert signals.cls_tokens.shape == (3, 0, 10)
    weight = embedding.weight.detach()
    for image, number, tokens in ((0, 0, [3, 9, 9]), (0, 1, [7]), (2, 0, [7])):
        text, rows = weight[tokens].mean(dim=0), features[image, :, :6]
        expected = rows @ text
        torch.testing.assert_close(signals[Signal.SIMILARITY][image, number], expected)
        cosine = expected / rows.norm(dim=1) / text.norm()
        torch.testing.assert_close(signals[Signal.COSINE][image, number], cosine)


def test_batch_without_texts_has_no_rows_of_them(embedding: nn.Embedding) -> None:
    features = torch.randn(2, TOKENS, 6)
    needs = frozenset({Signal.SIMILARITY, Signal.COSINE})
    signals = EmbeddingGuidance(embedding).signals(
        TokenGrid(features, 4, 6), [text_ids(), text_ids()], needs
    )
    assert signals[Signal.SIMILARITY].shape == (2, 0, TOKENS)
    assert signals[Signal.COSINE].shape == (2, 0, TOKENS)


def test_single_tokens_and_words_are_compared_as_they_are(embedding: nn.Embedding) -> None:
    """Half of a token's cosine is of the whole text; padding counts for nothing."""
    features = torch.randn(6 + 4) + 0.02 * torch.randn(3, TOKENS, 6 + 4)  # or all point sharply
    texts = [[[3, 9, 8, 1, 2, 7], [7]], [], [[7]]]
    words = [torch.tensor(ids, dtype=torch.int32) for ids in ([3, 9], [], [8])]
    needs = frozenset({Signal.TOKEN_COSINE, Signal.WORD_COSINE})
    ids = [text_ids(*some) for some in texts]
    signals = EmbeddingGuidance(embedding).signals(TokenGrid(features, 4, 6), ids, needs, words)
    assert list(signals.word_counts) == [2, 0, 1]
    weight = embedding.weight.detach()
    for image, some in enumerate(texts):
        rows = features[image, :, :6]
        for number, own in enumerate(some):
            tokens = torch.cat([weight[own].mean(dim=0, keepdim=True), weight[own]])
            cosines = torch.cosine_similarity(tokens[:, None], rows[None], dim=-1)
            calls = Calls()
            expected = sharpest(cosines.double().numpy(), [True] * len(own), calls)
            assert calls.closest > 1e-4
            found = signals[Signal.TOKEN_COSINE][image, number].double()
            torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)
        for number, word in enumerate(words[image].tolist()):
            expected_word = torch.cosine_similarity(weight[word][None], rows, dim=-1)
            torch.testing.assert_close(signals[Signal.WORD_COSINE][image, number], expected_word)


def test_batch_without_texts_has_no_tokens_of_them(embedding: nn.Embedding) -> None:
    needs = frozenset({Signal.TOKEN_COSINE, Signal.WORD_COSINE})
    nothing = torch.zeros(0, dtype=torch.int32)
    signals = EmbeddingGuidance(embedding).signals(
        TokenGrid(torch.randn(2, TOKENS, 6), 4, 6), [text_ids()] * 2, needs, [nothing] * 2
    )
    assert signals[Signal.TOKEN_COSINE].shape == (2, 0, TOKENS)
    assert signals[Signal.WORD_COSINE].shape == (2, 0, TOKENS)
