"""The formulas behind the signals against loops in double precision."""

import math
import random

import pytest
import torch

from vllm_litelvlm.pruning.scores import cls_attention, context_score, similarity_score

Matrix = list[list[float]]


def softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    return [power / sum(powers) for power in powers]


def dot(left: list[float], right: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def expected_context(query: list[float], keys: Matrix, values: Matrix) -> list[float]:
    weights = softmax([dot(query, key) / math.sqrt(len(query)) for key in keys])
    return [
        math.sqrt(math.fsum((weight * entry) ** 2 for entry in value))
        for weight, value in zip(weights, values, strict=True)
    ]


def expected_attention(query: list[float], keys: Matrix, heads: int) -> list[float]:
    width = len(query) // heads
    columns = [slice(head * width, (head + 1) * width) for head in range(heads)]
    each = [
        softmax([dot(query[part], key[part]) / math.sqrt(width) for key in keys])
        for part in columns
    ]
    return [math.fsum(token) / heads for token in zip(*each, strict=True)][1:]  # without [CLS]


def context(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Equation 5 from a query, keys and values; a constant on the logits changes nothing."""
    logits = torch.einsum("iw,ipw->ip", query, keys) / keys.shape[-1] ** 0.5
    return context_score(logits + 7, values.norm(dim=-1))


def attention(query: torch.Tensor, keys: torch.Tensor, heads: int) -> torch.Tensor:
    """The attention of a query to keys, by head; a constant on a head's logits changes nothing."""
    by_head = query.unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1))
    logits = torch.einsum("ihd,ithd->iht", *by_head) * by_head[0].shape[-1] ** -0.5
    return cls_attention(logits + torch.arange(heads)[:, None])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize(("images", "patches", "width"), [(1, 1, 1), (1, 9, 8), (3, 40, 16)])
def test_context_score_is_equation_5(
    generator: torch.Generator, images: int, patches: int, width: int
) -> None:
    query = torch.randn(images, width, generator=generator)
    keys, values = torch.randn(2, images, patches, width, generator=generator)
    scores = context(query, keys, values)
    assert scores.dtype == torch.float32
    expected = [
        expected_context(*arguments)
        for arguments in zip(
            query.double().tolist(), keys.double().tolist(), values.double().tolist(), strict=True
        )
    ]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-5, atol=1e-7)


def test_context_score_by_hand() -> None:
    # Logits 2 * ln(3) / sqrt(4) = ln(3) and 0: weights 3/4 and 1/4; lengths 5 and 2.
    query = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    keys = torch.tensor([[[math.log(3), 9.0, 9.0, 9.0], [0.0, 1.0, 2.0, 3.0]]])
    values = torch.tensor([[[3.0, 0.0, -4.0, 0.0], [1.0, 1.0, -1.0, 1.0]]])
    torch.testing.assert_close(context(query, keys, values), torch.tensor([[3.75, 0.5]]))


def test_context_score_survives_large_logits() -> None:
    query = torch.full((1, 4), 300.0)
    keys = torch.tensor([[[300.0] * 4, [299.0] * 4, [-300.0] * 4]])
    scores = context(query, keys, torch.ones(1, 3, 4))
    torch.testing.assert_close(scores, torch.tensor([[2.0, 0.0, 0.0]]))


def test_context_ranks_alike_with_the_softmax_over_all_and_over_the_non_retained(
    generator: torch.Generator,
) -> None:
    query = torch.randn(1, 16, generator=generator)
    keys, values = torch.randn(2, 1, 60, 16, generator=generator)
    retained = set(random.Random(3).sample(range(60), 20))
    others = [patch for patch in range(60) if patch not in retained]
    over_all = context(query, keys, values)[0, others]
    over_others = context(query, keys[:, others], values[:, others])[0]
    assert not torch.allclose(over_all, over_others)  # other numbers,
    assert over_all.argsort().tolist() == over_others.argsort().tolist()  # the same order


@pytest.mark.parametrize(("images", "texts", "patches"), [(1, 1, 1), (2, 3, 25), (3, 0, 9)])
def test_similarity_score_is_equation_4_without_normalisation(
    generator: torch.Generator, images: int, texts: int, patches: int
) -> None:
    features = torch.randn(images, patches, 12, generator=generator) * 5
    embeddings = torch.randn(images, texts, 12, generator=generator) * 5
    scores = similarity_score(features, embeddings)
    assert scores.shape == (images, texts, patches)
    assert scores.dtype == torch.float32
    for image in range(images):
        for text in range(texts):
            expected = [
                dot(patch, embeddings[image, text].double().tolist())
                for patch in features[image].double().tolist()
            ]
            torch.testing.assert_close(
                scores[image, text], torch.tensor(expected), rtol=1e-5, atol=1e-4
            )


def test_similarity_score_doubles_with_the_length_of_either_side(
    generator: torch.Generator,
) -> None:
    features = torch.randn(1, 9, 12, generator=generator)
    embeddings = torch.randn(1, 2, 12, generator=generator)
    scores = similarity_score(features, embeddings)
    torch.testing.assert_close(similarity_score(2 * features, embeddings), 2 * scores)
    torch.testing.assert_close(similarity_score(features, 2 * embeddings), 2 * scores)


@pytest.mark.parametrize(("images", "patches", "heads"), [(1, 1, 1), (1, 9, 2), (3, 40, 4)])
def test_cls_attention_is_the_mean_over_heads_without_cls_itself(
    generator: torch.Generator, images: int, patches: int, heads: int
) -> None:
    query = torch.randn(images, 16, generator=generator)
    keys = torch.randn(images, 1 + patches, 16, generator=generator)
    found = attention(query, keys, heads)
    assert found.shape == (images, patches)
    expected = [
        expected_attention(*both, heads)
        for both in zip(query.double().tolist(), keys.double().tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-7)


def test_cls_attention_leaves_to_cls_what_it_does_not_give_to_patches(
    generator: torch.Generator,
) -> None:
    query = torch.zeros(1, 16)
    keys = torch.randn(1, 5, 16, generator=generator)
    torch.testing.assert_close(attention(query, keys, 4), torch.full((1, 4), 0.2))
