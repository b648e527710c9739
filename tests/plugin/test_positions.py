"""Positions of kept tokens: rows of a prompt, offsets on tokens, and both together."""

import random

import pytest
import torch
from torch import Tensor

from vllm_litelvlm.plugin.positions import (
    ImageSpan,
    continuation,
    place_tokens,
    prompt_positions,
    split_offsets,
    with_offsets,
)

IMAGE = 7


def by_hand(prompt: list[int | tuple[list[int], int]]) -> tuple[list[int], int]:
    """Positions of a prompt of single tokens and images: each image's offsets and its span."""
    found, following = [], 0
    for part in prompt:
        if isinstance(part, int):
            found.append(following)
            following += 1
        else:
            offsets, span = part
            found += [following + offset for offset in offsets]
            following += span
    return found, following - len(found)


def spans_of(prompt: list[int | tuple[list[int], int]]) -> tuple[list[ImageSpan], list[int]]:
    """The images' spans, and the prompt's token ids."""
    spans, ids = [], []
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
        else:
            spans.append(ImageSpan(len(ids), len(part[0]), part[1]))
            ids += [IMAGE] * len(part[0])
    return spans, ids


def made_up(seed: int) -> list[int | tuple[list[int], int]]:
    """Text and up to three images, one behind the other or apart; each whole or pruned."""
    draw = random.Random(seed)
    prompt: list[int | tuple[list[int], int]] = [1] * draw.randint(0, 3)
    for _ in range(draw.randint(0, 3)):
        span = draw.choice([1, 5, 576, 577])
        kept = draw.sample(range(span), draw.randint(1, span))
        compact = draw.random() < 0.3
        prompt.append((list(range(len(kept))), len(kept)) if compact else (kept, span))
        prompt += [1] * draw.randint(0, 4)
    return prompt or [1]


@pytest.mark.parametrize("seed", range(60))
def test_chunks_of_a_prompt_are_placed_as_the_whole_is(seed: int) -> None:
    prompt = made_up(seed)
    spans, ids = spans_of(prompt)
    expected, ahead = by_hand(prompt)
    rows, told = prompt_positions(len(ids), spans)
    assert told == ahead
    assert continuation(rows) == ahead
    is_image = torch.tensor(ids) == IMAGE
    offsets = torch.tensor([o for part in prompt if not isinstance(part, int) for o in part[0]])
    draw, done, seen = random.Random(seed), 0, 0
    placed: list[int] = []
    while done < len(ids):
        end = min(len(ids), done + draw.randint(1, 200))
        count = int(is_image[done:end].sum())
        if count:
            rows = place_tokens(rows, is_image, offsets[seen : seen + count].long(), done)
        assert continuation(rows) == ahead
        placed += rows[0, done:end].tolist()
        done, seen = end, seen + count
    assert placed == expected
    assert rows[0].tolist() == expected
    assert torch.equal(is_image, torch.tensor(ids) == IMAGE)


def test_without_images_positions_are_those_of_stock() -> None:
    rows, ahead = prompt_positions(5, [])
    assert rows[0].tolist() == [0, 1, 2, 3, 4]
    assert ahead == 0


def test_prompt_that_ends_with_an_image_goes_on_behind_it() -> None:
    _, ahead = prompt_positions(3, [ImageSpan(1, 2, 576)])
    assert 3 + ahead == 1 + 576


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_offsets_survive_every_dtype(dtype: torch.dtype) -> None:
    tokens = torch.randn(4097, 8).to(dtype)
    offsets = torch.arange(4097)
    back, told = split_offsets(with_offsets(tokens, offsets))
    assert torch.equal(back, tokens)
    assert torch.equal(told, offsets)


def test_parts_of_an_image_keep_their_offsets() -> None:
    offsets: Tensor = torch.tensor([0, 5, 300, 575])
    whole = with_offsets(torch.zeros(4, 2, dtype=torch.bfloat16), offsets)
    assert split_offsets(whole[1:3])[1].tolist() == [5, 300]
