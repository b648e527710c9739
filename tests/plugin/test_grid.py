"""Positions by time, height and width: rows of a prompt, places on tokens, and both together."""

import random
from dataclasses import dataclass

import pytest
import torch

from vllm_litelvlm.plugin.grid import (
    Placing,
    Span,
    continuation,
    place_tokens,
    prompt_positions,
    split_places,
    with_places,
)

IMAGE = 7
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """A picture or video in a prompt: the places of its tokens, picture by picture."""

    span: Span
    kept: list[list[int]]


def by_hand(prompt: list[int | Part]) -> tuple[list[Place], int]:
    """Positions of a prompt, and where it goes on."""
    found: list[Place] = []
    following = 0
    for part in prompt:
        if isinstance(part, int):
            found.append((following,) * 3)
            following += 1
            continue
        span = part.span
        if span.placing is Placing.COMPACT:
            count = sum(map(len, part.kept))
            found += [(following + number,) * 3 for number in range(count)]
            following += count
            continue
        ends = [following + 1]
        for time, kept in zip(span.times, part.kept, strict=True):
            for index in kept:
                beyond = index - span.rows * span.columns
                row, column = divmod(index, span.columns)
                if beyond >= 0:
                    row, column = span.rows + beyond, span.columns + beyond
                found.append((following + time, following + row, following + column))
            ends += [following + time + 1]
        reach = max(span.rows, span.columns) + span.behind
        following = max(*ends, following + reach)
    return found, following


def made_up(seed: int) -> list[int | Part]:
    """Words, and up to three pictures or videos of any grid and placing; words at the end."""
    draw = random.Random(seed)
    prompt: list[int | Part] = [1] * draw.randint(0, 3)
    length = len(prompt)
    for _ in range(draw.randint(0, 3)):
        rows, columns = draw.randint(1, 30), draw.randint(1, 300)
        times = tuple(sorted(draw.sample(range(1, 40), draw.randint(0, 3))))
        placing = draw.choice(list(Placing))
        behind = draw.choice([0, 0, 1, 2]) if placing is not Placing.WHOLE else 0
        every = range(rows * columns)
        each = len(every) if placing is Placing.WHOLE else draw.randint(1, len(every)) + behind
        kept = [
            [
                *sorted(draw.sample(every, each - behind)),
                *range(len(every), len(every) + behind),
            ]
            for _ in (0, *times)
        ]
        span = Span(length, each, rows, columns, placing, (0, *times), behind)
        prompt.append(Part(span, kept))
        words = draw.randint(0, 4)
        prompt += [1] * words
        length = span.end + words
    return [*prompt, 1]


@pytest.mark.parametrize("seed", range(80))
def test_chunks_of_a_prompt_are_placed_as_the_whole_is(seed: int) -> None:
    prompt = made_up(seed)
    parts = [part for part in prompt if isinstance(part, Part)]
    expected, following = by_hand(prompt)
    ids = [
        token
        for part in prompt
        for token in ([part] if isinstance(part, int) else [IMAGE] * sum(map(len, part.kept)))
    ]
    rows, ahead = prompt_positions(len(ids), [part.span for part in parts])
    assert ahead == following - len(ids)
    first_row = rows[0].clone()
    is_image = torch.tensor(ids) == IMAGE
    places = [
        part.span.token_places(torch.tensor(part.kept).flatten(), torch.device("cpu")).flatten(0, 1)
        for part in parts
    ]
    every = torch.cat(places) if places else torch.zeros(0, 3, dtype=torch.int64)
    draw, done, seen = random.Random(seed), 0, 0
    placed: list[list[int]] = []
    while done < len(ids):
        end = min(len(ids), done + draw.randint(1, 5000))
        count = int(is_image[done:end].sum())
        for _ in range(draw.randint(1, 2) if count else 0):  # a step may come again
            rows = place_tokens(rows, is_image, every[seen : seen + count], done)
        assert continuation(rows) == ahead
        placed += rows[:, done:end].T.tolist()
        done, seen = end, seen + count
    assert placed == [list(place) for place in expected]
    assert torch.equal(rows[0], first_row)


def test_whole_pictures_are_placed_from_the_start() -> None:
    span = Span(2, 6, 2, 3, Placing.WHOLE)
    rows, ahead = prompt_positions(9, [span])
    assert rows.T.tolist()[2:8] == [[2, 2 + row, 2 + col] for row in range(2) for col in range(3)]
    assert rows[:, 8].tolist() == [5, 5, 5]
    assert ahead == 3 - 6


def test_prompt_that_ends_in_a_whole_picture_goes_on_behind_it() -> None:
    rows, ahead = prompt_positions(8, [Span(2, 6, 2, 3, Placing.WHOLE)])
    assert continuation(rows) == ahead


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_places_survive_every_dtype(dtype: torch.dtype) -> None:
    tokens = torch.randn(3000, 8).to(dtype)
    places = torch.stack([torch.arange(3000), torch.arange(3000) * 20, torch.arange(3000).flip(0)])
    back, told = split_places(with_places(tokens, places.T))
    assert torch.equal(back, tokens)
    assert torch.equal(told, places.T)
