"""Cosines against a plain derivation in double precision."""

import pytest
import torch
from torch import Tensor

from vllm_litelvlm.pruning.likeness import LikelyRows, cosines, mirrored_cosines


def derive(tokens: Tensor) -> Tensor:
    rows = tokens.double()
    lengths = (rows * rows).sum(dim=-1).sqrt().clamp(min=1e-12)
    return torch.einsum("ipw,iqw->ipq", rows, rows) / lengths[:, :, None] / lengths[:, None]


def tokens(images: int, patches: int, dtype: torch.dtype) -> Tensor:
    """One of an image's tokens has no direction, and two are the same."""
    drawn = torch.randn(images, patches, 40, generator=torch.Generator().manual_seed(patches))
    drawn[:, patches // 2] = 0
    drawn[:, -1] = drawn[:, 0]
    return (drawn * 3).to(dtype)


@pytest.mark.parametrize("patches", [1, 5, 127, 128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosines_are_those_of_the_derivation(patches: int, dtype: torch.dtype) -> None:
    given = tokens(2, patches, dtype)
    before, expected = given.clone(), derive(given).float()
    for compute in (cosines, mirrored_cosines):
        torch.testing.assert_close(compute(given), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(given, before)


@pytest.mark.parametrize("patches", [100, 300])
def test_tokens_are_as_like_each_other_either_way_round(patches: int) -> None:
    """Or two nearest neighbours, which are as far from the rest as each other, were no tie."""
    likeness = mirrored_cosines(tokens(8, patches, torch.float32))
    assert torch.equal(likeness, likeness.transpose(1, 2))


@pytest.mark.parametrize("count", [1, 20, 70])
def test_likely_rows_are_rows_of_the_whole_whatever_was_thought_likely(count: int) -> None:
    given = tokens(3, 70, torch.float32)
    expected, rows = derive(given).float(), LikelyRows(given, count)
    generator = torch.Generator().manual_seed(count)
    for _ in range(200):
        wanted = torch.randint(70, (3,), generator=generator)
        likely = torch.rand(3, 70, generator=generator)
        likely[0] = -torch.inf  # as where all are taken
        kept = likely.clone()
        found = rows.read(wanted, likely)
        torch.testing.assert_close(found, expected[range(3), wanted], rtol=1e-5, atol=1e-6)
        assert torch.equal(likely, kept)
