"""Positions of kept tokens: rows of a prompt, offsets on tokens, and both together."""

import random

import pytest
import torch
from torch import Tensor
from vllm.multimodal.inputs import PlaceholderRange

from vllm_litelvlm.plugin.models.positions import bases_below
from vllm_litelvlm.plugin.positions import (
    ImageSpan,
    continuation,
    place_tokens,
    prompt_positions,
    split_offsets,
    with_offsets,
)
from vllm_litelvlm.pruning.order import Layer

IMAGE = 7


#: A token, or an image: its tokens' offsets, its span, and whose positions it shares if anybody's.
Part = int | tuple[list[int], int, int | None]


def by_hand(prompt: list[Part]) -> tuple[list[int], int]:
    """Positions of a prompt."""
    found, following = [], 0
    starts: list[int] = []
    for part in prompt:
        if isinstance(part, int):
            found.append(following)
            following += 1
        else:
            offsets, span, within = part
            starts.append(following if within is None else starts[within])
            found += [starts[-1] + offset for offset in offsets]
            following += span if within is None else 0
    return found, following - len(found)


def spans_of(prompt: list[Part]) -> tuple[list[ImageSpan], list[int]]:
    """The images' spans, and the prompt's token ids."""
    spans, ids = [], []
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
        else:
            offsets, span, within = part
            spans.append(
                ImageSpan(len(ids), len(offsets), 0 if within is not None else span, within)
            )
            ids += [IMAGE] * len(offsets)
    return spans, ids


def made_up(seed: int) -> list[Part]:
    """Text, up to three images, whole or pruned, and focuses on them; adjacent or apart."""
    draw = random.Random(seed)
    prompt: list[Part] = [1] * draw.randint(0, 3)
    images: list[int] = []  # those that take positions of their own
    for number in range(draw.randint(0, 5)):
        if images and draw.random() < 0.4:
            prompt.append((draw.sample(range(5), draw.randint(1, 5)), 0, draw.choice(images)))
            prompt += [1] * draw.randint(0, 4)
            continue
        images.append(number)
        span = draw.choice([1, 5, 576, 577])
        kept = draw.sample(range(span), draw.randint(1, span))
        compact = draw.random() < 0.3
        offsets = list(range(len(kept))) if compact else kept
        prompt.append((offsets, len(kept) if compact else span, None))
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


def test_focus_lies_on_a_base_of_its_own_picture() -> None:
    base, focus, whole = Layer.BASE, Layer.FOCUS, Layer.WHOLE
    prompt = [
        (base, "a"), (base, "b"), (base, "a"), (focus, "a"), (focus, "b"), (focus, "a"), None,
        (whole, "c"), None, (focus, "a"), None, (base, "b"), (focus, "b"), (focus, "b"),
    ]  # fmt: skip
    items = [part for part in prompt if part is not None]
    offsets = [4 * number for number, part in enumerate(prompt) if part is not None]
    below = bases_below(
        [layer for layer, _ in items],
        [key.encode() for _, key in items],
        [PlaceholderRange(offset, 4) for offset in offsets],
    )
    assert below == [None, None, None, 0, 1, 2, None, 2, None, 1, 8]
