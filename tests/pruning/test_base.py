"""The contract's own pieces by hand."""

import pytest
import torch

from tests.pruning.helpers import TEXT_SIGNALS, random_signals
from vllm_litelvlm.pruning.base import CLS, Selection, Signal, append, keep, take


def test_rows_are_images_in_the_order_given() -> None:
    signals = random_signals([1, 0, 3, 2], patches=9)
    some = signals.rows([3, 0])
    assert (some.images, some.patches, list(some.text_counts)) == (2, 9, [2, 1])
    for signal in frozenset(signals.values) - TEXT_SIGNALS:
        assert torch.equal(some[signal], signals[signal][[3, 0]])
    assert some.tower is not None
    assert signals.tower is not None
    assert torch.equal(some.tower.embed(), signals.tower.embed()[[3, 0]])


@pytest.mark.parametrize("images", [[0, 1, 2, 3], [3, 0], [0], [1], [2, 1], [2, 2]])
def test_padding_of_text_signals_is_filled_and_nothing_else(images: list[int]) -> None:
    """Whoever asks for some of a batch's images must not read the texts of the others."""
    signals = random_signals([1, 0, 3, 2], patches=9).rows(images)
    for signal in TEXT_SIGNALS:
        before = signals[signal].clone()
        filled = signals.own_texts(signals[signal], -7.0)
        for row, old, count in zip(filled, before, signals.text_counts, strict=True):
            assert torch.equal(row[:count], old[:count])
            assert (row[count:] == -7).all()
        assert torch.equal(signals[signal], before)
    assert signals.have_text.tolist() == [[count > 0] for count in signals.text_counts]


def test_signal_that_was_not_computed_is_named() -> None:
    signals = random_signals([1], patches=9)
    with pytest.raises(AssertionError, match="signal tower was not computed"):
        signals[Signal.TOWER]


def test_patch_tokens_are_the_features_without_cls() -> None:
    signals = random_signals([1], patches=9)
    assert torch.equal(signals.patch_tokens, signals[Signal.FEATURES][:, 1:])


def test_take_gathers_each_images_own_rows() -> None:
    rows = torch.arange(12).reshape(2, 3, 2)
    indices = torch.tensor([[2, 0], [1, 1]])
    assert take(rows, indices).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_kept_patches_come_as_they_are_and_an_appended_token_follows() -> None:
    signals = random_signals([1, 1], patches=9)
    indices = torch.tensor([[5, 2], [0, 8]])
    kept = keep(signals, indices)
    assert torch.equal(kept.tokens[1], signals.patch_tokens[1, [0, 8]])
    assert not kept.guided.any()
    guided = keep(signals, indices, torch.ones(2, 2, dtype=torch.bool))
    more = append(guided, torch.full((2, 1, 8), 7.0), 9)
    assert more.indices.tolist() == [[5, 2, 9], [0, 8, 9]]
    assert more.guided.tolist() == [[True, True, False]] * 2
    assert torch.equal(more.tokens[:, :2], kept.tokens)
    assert (more.tokens[:, 2] == 7).all()


def test_selection_of_a_batch_comes_apart_by_image() -> None:
    tokens, indices = torch.randn(2, 3, 4), torch.tensor([[CLS, 0, 1], [2, 3, 4]])
    first, second = Selection(tokens, indices, indices > 1).unbind()
    assert torch.equal(first.tokens, tokens[0])
    assert first.indices.tolist() == [CLS, 0, 1]
    assert second.guided.tolist() == [True] * 3
