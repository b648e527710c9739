"""Farthest points by hand and against loops over integers, and a GPU's against the CPU's."""

import random

import pytest
import torch
from torch import Tensor

from vllm_litelvlm.pruning.farthest import farthest_in_planes, farthest_points, gaps_to

#: (images, patches, columns): squares, rows that are cut short, lines.
SHAPES = [(1, 1, 1), (2, 9, 3), (2, 36, 6), (3, 11, 4), (2, 7, 7), (1, 7, 1)]


def derive(weights: list[int], columns: int, count: int, base: list[int]) -> list[int]:
    """Choices with loops over whole numbers."""
    chosen: list[int] = []
    for _ in range(count):
        best, most = -1, -1
        for patch, weight in enumerate(weights):
            near = [
                (patch // columns - other // columns) ** 2
                + (patch % columns - other % columns) ** 2
                for other in base + chosen
            ]
            score = weight * min(near, default=1)
            if patch not in base + chosen and score > most:
                best, most = patch, score
        chosen.append(best)
    return chosen


def whole_weights(images: int, patches: int, seed: int, heaviest: int = 4) -> Tensor:
    """Few different whole numbers, so that most choices are ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 1 + heaviest, (images, patches), generator=generator).float()


def random_base(images: int, patches: int, members: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(images, patches, generator=generator).argsort(dim=-1)[:, :members]
    return torch.zeros(images, patches, dtype=torch.bool).scatter(1, places, True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("heaviest", [1, 4, 1000])
def test_choices_equal_those_of_loops(shape: tuple[int, int, int], heaviest: int) -> None:
    images, patches, columns = shape
    for seed in range(8):
        weights = whole_weights(images, patches, seed, heaviest)
        members = random.Random(seed).randrange(patches)
        base = random_base(images, patches, members, seed) if seed % 2 else None
        count = patches - (members if seed % 2 else 0)
        found = farthest_points(weights, columns, count, base)
        assert found.dtype == torch.int64
        given = [[] for _ in weights] if base is None else [m.nonzero().flatten() for m in base]
        assert found.tolist() == [
            derive([int(w) for w in one], columns, count, [int(patch) for patch in before])
            for one, before in zip(weights, given, strict=True)
        ]


def test_equal_weights_give_corners_then_the_middle() -> None:
    assert farthest_points(torch.ones(1, 9), 3, 5).tolist() == [[0, 8, 2, 6, 4]]


def test_weight_outdoes_distance_where_it_is_large_enough() -> None:
    weights = torch.ones(1, 9)
    weights[0, 4] = 9  # the middle first, and nothing is heavier next to it
    weights[0, 1] = 3  # 3 * 1 above a corner's 1 * 2
    assert farthest_points(weights, 3, 3).tolist() == [[4, 1, 6]]


def test_gaps_are_squared_distances_to_the_nearest_of_the_base() -> None:
    base = torch.zeros(2, 11, dtype=torch.bool)
    base[0, [0, 10]] = True
    gaps = gaps_to(base, 4)
    assert gaps[0].view(-1).tolist() == [0, 1, 4, 5, 1, 2, 1, 2, 4, 1, 0]
    assert gaps[1].tolist() == [16] * 11  # no base: a power of two above 2² + 3²


def test_neither_weights_nor_base_are_changed() -> None:
    weights, base = whole_weights(2, 64, 0), random_base(2, 64, 5, 0)
    before = weights.clone(), base.clone()
    farthest_points(weights, 8, 20, base)
    assert torch.equal(weights, before[0])
    assert torch.equal(base, before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_chooses_what_the_cpu_chooses() -> None:
    for images, patches, columns in [*SHAPES, (8, 576, 24), (3, 2880, 54)]:
        for base in (None, random_base(images, patches, patches // 5, 0)):
            weights = 1 + 12 * torch.rand(images, patches)
            count = patches - patches // 5
            on_gpu = farthest_points(
                weights.cuda(), columns, count, None if base is None else base.cuda()
            )
            assert torch.equal(on_gpu.cpu(), farthest_points(weights, columns, count, base))


@pytest.mark.parametrize("heaviest", [1, 4, 1000])
@pytest.mark.parametrize("shapes", [[(3, 3), (4, 5)], [(2, 2), (1, 7), (3, 2)], [(4, 4)]])
def test_planes_do_not_see_each_other(shapes: list[tuple[int, int]], heaviest: int) -> None:
    points = [
        (row, column, plane)
        for plane, (rows, columns) in enumerate(shapes)
        for row in range(rows)
        for column in range(columns)
    ]

    def gap(patch: int, chosen: list[int]) -> int:
        row, column, plane = points[patch]
        near = [
            (row - points[other][0]) ** 2 + (column - points[other][1]) ** 2
            for other in chosen
            if points[other][2] == plane
        ]
        return min(near, default=2**21)

    for seed in range(8):
        weights = whole_weights(2, len(points), seed, heaviest)
        found = farthest_in_planes(weights, torch.tensor(points).float(), len(points))
        for one, order in zip(weights.tolist(), found.tolist(), strict=True):
            for number, newest in enumerate(order):
                scores = [
                    -1 if patch in order[:number] else weight * gap(patch, order[:number])
                    for patch, weight in enumerate(one)
                ]
                assert newest == scores.index(max(scores))
