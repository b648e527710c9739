"""ToMe against a slow re-derivation."""

import itertools
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.pruning.helpers import CLIP_LAYERS, random_signals
from tests.pruning.rederivation import (
    Calls,
    Shape,
    Vector,
    clear_case,
    cosines,
    random_shape,
    weighted_sum,
)
from vllm_litelvlm.pruning.base import CLS, Selection, Signals
from vllm_litelvlm.pruning.registry import build_pruner


@dataclass(frozen=True)
class Token:
    """Some patches in one: their mean, how many there are, and whose place they take."""

    hidden: Vector
    key: Vector
    size: int
    place: int


def schedule(merges: int, layers: int) -> list[int]:
    """How many tokens each block merges: after some of the blocks, their part of all, whole."""
    done = [merges * blocks // layers for blocks in range(layers + 1)]
    counts = [after - before for before, after in itertools.pairwise(done)]
    assert max(counts) - min(counts) <= 1
    return counts


def merge(tokens: list[Token], count: int, calls: Calls) -> list[Token]:
    """Put ``count`` of the tokens at even places into tokens at odd places."""
    even, odd = tokens[0::2], tokens[1::2]
    likeness = cosines([token.key for token in even], [token.key for token in odd])
    best = [max(row) for row in likeness]
    falling = sorted(range(1, len(even)), key=lambda place: -best[place])  # 0 is [CLS]
    calls.cut([best[place] for place in falling], count)
    groups = [[token] for token in odd]
    for place in falling[:count]:
        calls.cut(sorted(likeness[place], reverse=True), 1)
        groups[likeness[place].index(best[place])].append(even[place])
    stay = [token for place, token in enumerate(even) if place not in falling[:count]]
    return stay + [together(group) for group in groups]


def together(group: list[Token]) -> Token:
    """The mean of all patches of a group, at the place of its first token."""
    if len(group) == 1:
        return group[0]
    size = sum(token.size for token in group)
    shares = [token.size / size for token in group]

    def mean(vectors: list[Vector]) -> Vector:
        return weighted_sum(vectors, shares, len(vectors[0]))

    hidden, key = mean([token.hidden for token in group]), mean([token.key for token in group])
    return Token(hidden, key, size, group[0].place)


def derive(signals: Signals, image: int, budget: int, calls: Calls) -> list[Token]:
    """Tokens in raster order, without [CLS]."""
    assert signals.tower is not None
    tower = signals.tower.rows([image])
    hidden = tower.embed().double()
    sizes, places = [1] * hidden.shape[1], list(range(CLS, hidden.shape[1] - 1))
    tokens: list[Token] = []
    for layer, count in enumerate(schedule(signals.patches - budget, tower.layers)):
        hidden, keys = tower.attend(layer, hidden, torch.tensor([sizes], dtype=torch.float32))
        each = zip(hidden[0].tolist(), keys[0].double().tolist(), sizes, places, strict=True)
        tokens = [Token(*parts) for parts in each]
        while count:
            step = min(count, (len(tokens) - 1) // 2)
            tokens, count = merge(tokens, step, calls), count - step
        hidden = torch.tensor([[token.hidden for token in tokens]], dtype=torch.float64)
        hidden = tower.feed_forward(layer, hidden)
        sizes, places = [token.size for token in tokens], [token.place for token in tokens]
    done = zip(hidden[0].tolist(), sizes, places, strict=True)
    final = [Token(vector, [], size, place) for vector, size, place in done if place != CLS]
    return sorted(final, key=lambda token: token.place)


def _signals(text_counts: tuple[int, ...], patches: int, seed: int, width: int) -> Signals:
    layers = random.Random(seed).choice([1, 2, 3, 6, CLIP_LAYERS] if patches < 576 else [2])
    return random_signals(text_counts, patches, seed, width, layers=layers)


def _shape(seed: int) -> Shape:
    if seed % 25 == 24:
        return Shape(576, random.Random(seed).choice([64, 192]), (0,))
    return random_shape(seed, patches=[16, 25, 36, 49, 64])


def _assert_equal(one: Selection, expected: list[Token]) -> None:
    assert one.indices.tolist() == [token.place for token in expected]
    tokens = torch.tensor([token.hidden for token in expected])
    torch.testing.assert_close(one.tokens, tokens, rtol=1e-5, atol=1e-5 * _scale(tokens))
    assert not one.guided.any()


def _scale(tokens: Tensor) -> float:
    return max(1.0, float(tokens.abs().max()))


@pytest.mark.parametrize("seed", range(50))
def test_selection_equals_the_re_derivation(seed: int) -> None:
    shape = _shape(seed)
    signals, expected = clear_case(
        seed, shape, 32, lambda *case: derive(*case[:2], shape.budget, case[2]), _signals
    )
    selection = build_pruner("tome", {}).select(signals, shape.budget)
    for one, tokens in zip(selection.unbind(), expected, strict=True):
        _assert_equal(one, tokens)
        assert sum(token.size for token in tokens) == shape.patches
