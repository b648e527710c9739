"""Orders by hand."""

import pytest
import torch

from vllm_litelvlm.pruning.ranking import highest, membership, others, part, ranks, raster

SCORES = torch.tensor([[0.1, 0.5, 0.3, 0.5, -1.0], [2.0, 2.0, 2.0, 2.0, 3.0]])


def test_highest_come_falling_and_ties_go_to_the_lower_patch() -> None:
    assert highest(SCORES, 3).tolist() == [[1, 3, 2], [4, 0, 1]]
    assert highest(SCORES, 5).tolist() == [[1, 3, 2, 0, 4], [4, 0, 1, 2, 3]]
    assert highest(SCORES, 0).shape == (2, 0)


def test_long_rows_of_ties_keep_their_order() -> None:
    assert highest(torch.zeros(1, 576), 576).tolist() == [list(range(576))]
    assert ranks(torch.zeros(1, 576)).tolist() == [list(range(576))]


def test_raster_sorts_each_image() -> None:
    assert raster(torch.tensor([[4, 0, 2], [1, 3, 0]])).tolist() == [[0, 2, 4], [0, 1, 3]]


def test_membership_marks_the_given_patches() -> None:
    found = membership(torch.tensor([[3, 0], [1, 2]]), 4)
    assert found.tolist() == [[True, False, False, True], [False, True, True, False]]
    assert not membership(torch.empty(2, 0, dtype=torch.int64), 3).any()


def test_others_are_the_patches_not_given_in_raster_order() -> None:
    assert others(torch.tensor([[3, 0], [1, 2]]), 5).tolist() == [[1, 2, 4], [0, 3, 4]]
    assert others(torch.empty(1, 0, dtype=torch.int64), 3).tolist() == [[0, 1, 2]]
    assert others(torch.tensor([[2, 0, 1]]), 3).shape == (1, 0)


def test_ranks_are_places_in_ascending_order() -> None:
    assert ranks(SCORES).tolist() == [[1, 3, 2, 4, 0], [0, 1, 2, 3, 4]]
    texts = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 5.0, 0.0]]])  # the last dimension, whatever more
    assert ranks(texts).tolist() == [[[2, 0, 1], [0, 2, 1]]]


@pytest.mark.parametrize(
    ("budget", "share", "count"),
    [(3, 0.5, 2), (4, 0.5, 2), (1, 0.49, 0), (64, 54 / 64, 54), (192, 54 / 64, 162), (9, 1.0, 9)],
)
def test_part_rounds_half_up(budget: int, share: float, count: int) -> None:
    assert part(budget, share) == count
