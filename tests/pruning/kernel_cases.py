"""Every kernel beside the loop that it stands for, on random inputs and on ties.

``python -m tests.pruning.kernel_cases NAME``, in Triton's interpreter (TRITON_INTERPRET=1), which
computes on a CPU; tests on a GPU call the same functions. Each yields what both sides chose.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.pruning.test_farthest import SHAPES, random_base, whole_weights
from vllm_litelvlm.pruning import (
    cdpruner,
    divprune,
    facility,
    farthest,
    prunesid,
    sharpest,
    tome,
    vispruner,
)
from vllm_litelvlm.pruning.likeness import cosines

Pairs = Iterator[tuple[Tensor, Tensor]]

#: (images, patches, how many to choose); few are powers of two, two are as long as an image.
SIZES = [(1, 1, 1), (2, 9, 9), (3, 11, 4), (2, 64, 20), (1, 100, 100), (2, 288, 20), (1, 576, 32)]
LONGEST = (1, 2880, 3)


def tokens(images: int, patches: int, width: int = 24) -> Tensor:
    return torch.randn(images, patches, width)


def axes(images: int, patches: int) -> Tensor:
    """Tokens along few axes of space, so that all cosines are 0 or 1 and most choices ties."""
    return torch.eye(5)[torch.randint(5, (images, patches))] * 2


def farthest_points(device: str) -> Pairs:
    from vllm_litelvlm.pruning.kernels.farthest import choose_in_one_launch

    cases = [(*shape, shape[1]) for shape in SHAPES]
    cases += [(1, 576, 24, 24), (1, 2880, 54, 4), (2, 300, 18, 12)]
    for seed, (images, patches, columns, count) in enumerate(cases):
        for members in sorted({0, patches // 5}):
            base = random_base(images, patches, members, seed)
            gaps, most = farthest.gaps_to(base, columns), min(count, patches - members)
            beyond = farthest.beyond(patches, columns)
            given = base.to(device) if members else None
            for weights in (whole_weights(images, patches, seed), 1 + 12 * torch.rand(gaps.shape)):
                yield (
                    choose_in_one_launch(weights.to(device), given, columns, most, beyond),
                    farthest.farthest_step_by_step(weights, gaps, columns, most),
                )


def most_volume(device: str) -> Pairs:
    from vllm_litelvlm.pruning.kernels.determinant import choose_in_one_launch

    for images, patches, count in [*SIZES, LONGEST]:
        random, tied = torch.rand(images, patches), torch.randint(1, 4, (images, patches)) / 4
        likeness, broken = cosines(tokens(images, patches, 3)), torch.full_like(random, torch.nan)
        yield (  # each once, and none outside
            choose_in_one_launch(likeness.to(device), broken.to(device), count, 1e-5),
            torch.arange(count).expand(images, -1),
        )
        for relevance, rows in [
            (random, tokens(images, patches, max(24, count))),
            (random, tokens(images, patches, 3)),  # whose rank is soon used up
            (tied, axes(images, patches)),
            (torch.ones_like(random), axes(images, patches)),
        ]:
            likeness, each = cosines(rows), torch.arange(images)
            yield (
                choose_in_one_launch(likeness.to(device), relevance.to(device), count, 1e-5),
                cdpruner.most_volume(
                    lambda newest, _, likeness=likeness, each=each: likeness[each, newest],
                    relevance,
                    count,
                ),
            )


def most_diverse(device: str) -> Pairs:
    from vllm_litelvlm.pruning.kernels.diversity import choose_in_one_launch

    for images, patches, count in [*SIZES, LONGEST]:
        for rows in (tokens(images, patches), axes(images, patches)):
            likeness, first = cosines(rows), torch.randint(patches, (images,))
            tied = torch.randint(1, 4, (images, patches)) / 4
            for weights in (torch.ones(images, patches), tied, torch.rand(images, patches)):
                given = likeness, weights, first
                yield (
                    choose_in_one_launch(*(one.to(device) for one in given), count),
                    divprune.most_diverse(*given, count),
                )


def most_covering(device: str) -> Pairs:
    from vllm_litelvlm.pruning.kernels.facility import choose_in_one_launch

    for images, patches, count in [*SIZES, LONGEST]:
        wide = torch.randint(9, (images, patches, patches + 5)) / 8  # whose sums are exact
        for likeness in (cosines(tokens(images, patches)), cosines(axes(images, patches)), wide):
            worth = torch.randint(1, 4, (images, patches)) / 4
            yield (
                choose_in_one_launch(likeness.to(device), count, worth.to(device)),
                facility.cover_step_by_step(likeness, count, worth),
            )


def sharpest_mixed(device: str) -> Pairs:
    """Scores are brought to a tolerance."""
    from vllm_litelvlm.pruning.kernels.sharpest import mix_in_one_launch

    for pairs, count, patches in [(1, 1, 1), (2, 3, 5), (3, 12, 9), (2, 20, 64), (1, 77, 576)]:
        for scale in (0.003, 0.01, 0.02, 0.05):
            cosines = scale * torch.randn(pairs, 1 + count, patches)
            own = torch.rand(pairs, count) < 0.7
            own[:, 0] = True
            found = mix_in_one_launch(cosines.to(device), own.to(device), 100.0, 0.2)
            near = torch.isclose(found.cpu(), sharpest.mix(cosines, own), 1e-4, 1e-5)
            yield near, torch.ones_like(near)


def thinned_out(device: str) -> Pairs:
    from vllm_litelvlm.pruning.kernels.thinning import thin_out_in_one_launch

    shapes = [*SIZES[:5], (2, 9, 1), (2, 10, 1), (3, 65, 2), (2, 130, 97), (1, 577, 480)]
    for images, patches, count in shapes:
        for rows in (tokens(images, patches), axes(images, patches)):
            likeness = cosines(rows)
            for fewer in sorted({0, (patches - count) // 3}):  # important ones are not among them
                order = torch.rand(images, patches).argsort(dim=-1)[:, fewer:]
                yield (
                    thin_out_in_one_launch(likeness.to(device), order.to(device), count, 8),
                    vispruner.thin_out_round_by_round(likeness, order, count),
                )


#: (images, rows, width) of what is decomposed; in two there are more rows than they can span.
DECOMPOSED = [(1, 1, 8), (2, 2, 9), (2, 5, 33), (2, 7, 5), (2, 16, 300), (1, 20, 8), (1, 33, 64)]


def _near(found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    near = torch.isclose(found.cpu(), expected, 1e-9, 1e-9)
    return near, torch.ones_like(near)


def made_orthonormal(device: str) -> Pairs:
    """Brought to a tolerance: what projects onto the rows, which may have another basis."""
    from vllm_litelvlm.pruning.kernels.axes import orthonormal_in_one_launch

    for images, count, width in DECOMPOSED:
        random = torch.randn(images, count, width, dtype=torch.float64)
        for rows in (random, 1e4 ** -torch.rand(count, 1) * random, torch.ones_like(random)):
            found, expected = orthonormal_in_one_launch(rows.to(device)), prunesid.orthonormal(rows)
            if count < width and rows.std() > 0:
                yield _near(found.mT @ found, expected.mT @ expected)
            lengths = torch.linalg.vector_norm(found, dim=-1)
            yield _near(lengths, lengths.cpu().round())


def turned_to_axes(device: str) -> Pairs:
    """Brought to a tolerance and but for signs."""
    from vllm_litelvlm.pruning.kernels.axes import axes_in_one_launch

    for images, count, width in DECOMPOSED:
        rows = torch.randn(images, count, width, dtype=torch.float64)
        squares = rows @ rows.mT
        found = axes_in_one_launch(squares.to(device), prunesid.NOTHING)
        yield _near(found.abs(), prunesid.axes(squares).abs())
        for given in (torch.zeros_like(squares), torch.full_like(squares, torch.nan)):
            found = axes_in_one_launch(given.to(device), prunesid.NOTHING)
            yield _near(found, torch.zeros_like(squares))


def _lined_up(device: str) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """A budget, the groups, and turns and counts of both sides."""
    from vllm_litelvlm.pruning.kernels.suppression import line_up_in_one_launch

    for images, patches, count in [*SIZES, LONGEST]:
        for rows in (tokens(images, patches), tokens(images, patches) + 0.6, axes(images, patches)):
            likeness, groups = cosines(rows), max(1, count // 4)
            falling = torch.rand(images, patches).argsort(dim=-1)
            belongs = torch.randint(groups, (images, patches)) // 2 * 2  # some have none
            total, factor = likeness.sum(dim=(1, 2)), count / 32 / max(1, patches * (patches - 1))
            if patches == 11:
                likeness[0, 3:5] = total[2] = torch.nan

            def among(image: int, some: NDArray[np.int64], of: Tensor = likeness) -> Any:
                return of[image].numpy()[np.ix_(some, some)]

            given = (one.to(device) for one in (likeness, total, falling, belongs))
            found = line_up_in_one_launch(*given, groups, factor)
            expected = prunesid.line_up(among, total, falling, belongs, groups, factor)
            yield count, belongs, found, expected


def lined_up(device: str) -> Pairs:
    for _, _, found, expected in _lined_up(device):
        yield from zip(found, expected, strict=True)


def shared_out(device: str) -> Pairs:
    from vllm_litelvlm.pruning.kernels.suppression import share_out_in_one_launch

    for budget, belongs, _, (turns, counts) in _lined_up(device):
        for own in (0, 1):
            given = belongs, turns, counts
            yield (
                share_out_in_one_launch(*(one.to(device) for one in given), budget, own),
                prunesid.share_out(*given, budget, own),
            )


def merged(device: str) -> Pairs:
    """Places and sizes are equal; hidden states are brought to a tolerance."""
    from vllm_litelvlm.pruning.kernels.merging import merge_in_one_launch

    shapes = [(1, 3, 1, 4, 2), (2, 10, 4, 8, 3), (3, 37, 9, 130, 16), (2, 66, 32, 33, 20)]
    for images, count_of, count, width, key_width in [*shapes, (1, 577, 22, 64, 64)]:
        for dtype in (torch.float32, torch.bfloat16):
            hidden = torch.randn(images, count_of, width).to(dtype)
            keys = torch.randn(images, count_of, key_width)
            sizes = torch.randint(1, 5, (images, count_of)).float()
            places = torch.arange(-1, count_of - 1).expand(images, -1)
            given = hidden, keys, sizes, places
            found = merge_in_one_launch(*(one.to(device) for one in given), count)
            expected = tome.merge_once(*given, count)
            scale = 0.01 if dtype is torch.bfloat16 else 1e-5
            near = torch.isclose(found[0].cpu().float(), expected[0].float(), scale, scale)
            yield near, torch.ones_like(near)
            yield from zip(found[1:], expected[1:], strict=True)


KERNELS: dict[str, Callable[[str], Pairs]] = {
    "farthest": farthest_points,
    "determinant": most_volume,
    "diversity": most_diverse,
    "facility": most_covering,
    "sharpest": sharpest_mixed,
    "thinning": thinned_out,
    "orthonormal": made_orthonormal,
    "axes": turned_to_axes,
    "suppression": lined_up,
    "shares": shared_out,
    "merging": merged,
}


def compare(name: str, device: str) -> int:
    """How many cases there are; every one is equal."""
    torch.manual_seed(0)
    number = 0
    for found, expected in KERNELS[name](device):
        assert found.dtype == expected.dtype
        assert torch.equal(found.cpu(), expected), (name, number, found, expected)
        number += 1
    return number


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(compare(sys.argv[1], "cpu"))
