"""PruneSID: tokens grouped by principal components, and redundant ones of each group last."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vllm_litelvlm.pruning import random
from vllm_litelvlm.pruning.base import CLS, Pruner, Selection, Signal, Signals, take
from vllm_litelvlm.pruning.kernels import kernels_take
from vllm_litelvlm.pruning.ranking import highest

#: Tokens of the budget for each group, and groups at most.
_A_GROUP, _GROUPS = 4, 256
#: At this budget the mean cosine itself is the threshold.
_AT_THE_MEAN = 32
#: A group gives at most so many tokens for every so many of the budget.
_MOST, _FOR_EVERY = 5, 64
#: As the official search for components has them.
_POWER_ITERATIONS = 2
#: Of the random start.
_SEED = 0
#: A component with less than this part of the first one's variance is rounding.
NOTHING = 1e-12

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class PruneSID(Pruner):
    """PruneSID (ICLR 2026; github.com/ZhengyaoFang/PruneSID).

    A quarter as many principal components as the budget are taken of the sigmoid of the features,
    with tokens as variables; each token is in the group of the component that it weighs most in.
    Within a group, by falling attention of [CLS] (feature layer), a token is suppressed by an
    earlier one that is not, if their cosine is above budget / 32 times the mean of all pairs of
    tokens. Groups share the budget by how many they have left, with at least 1 token each and at
    most 5 for every 64 of the budget, as far as that fills it; suppressed tokens come last. [CLS]
    goes to the language model too, as one of the budget, where the tower has one.

    The order is the official one: [CLS], then group by group by falling variance, and in a group
    by falling attention, the suppressed ones behind the others.

    Deviations: the official components come from a randomised search with a new start each time,
    so that no two runs agree. Here the start is drawn once, in the space of features, whatever the
    number of tokens, which is one product less, and the search is in double precision. Groups with
    as many tokens left go by their number where one is to give more, and shares that are half-way
    are rounded exactly. A budget below 4, for which the official code fails, makes one group, and
    no budget makes more than 256.
    """

    name: ClassVar[str] = "prunesid"
    paper: ClassVar[str] = "PruneSID (ICLR 2026)"

    @property
    def needs(self) -> frozenset[Signal]:
        """The attention of [CLS]."""
        return frozenset({Signal.FEATURES, Signal.CLS_ATTENTION})

    def places(self, patches: int) -> range:
        """[CLS], and behind it the patches."""
        return range(CLS, patches)

    def select(self, signals: Signals, budget: int) -> Selection:
        """Groups, their lines, and what each may give."""
        own = signals.cls_tokens.shape[1]
        groups = min(max(1, budget // _A_GROUP), _GROUPS)
        tokens = signals.patch_tokens.float()
        belongs = _groups(torch.sigmoid(tokens).double(), groups)
        falling = highest(signals[Signal.CLS_ATTENTION], signals.patches)
        turns, counts = _line_up(tokens, falling, belongs, groups, budget)
        if kernels_take(turns):
            from vllm_litelvlm.pruning.kernels.suppression import share_out_in_one_launch

            places = share_out_in_one_launch(belongs, turns, counts, budget, own)
        else:
            places = share_out(belongs, turns, counts, budget, own)
        nobody = torch.zeros_like(places, dtype=torch.bool)
        features = signals[Signal.FEATURES]
        return Selection(take(features, places + own if own else places), places, nobody)


def _groups(values: Tensor, count: int) -> Tensor:
    """Of which principal component each token has the most, int64 [images, patches].

    Directions at right angles to (1, 1, ...) see of a token what is left without its mean.
    ``values``: float64 [images, patches, width].
    """
    width = values.shape[-1]
    numbers = random.permutation(_SEED, _GROUPS * width, values.device)  # one for all budgets
    middle = torch.tensor((_GROUPS * width - 1) / 2, dtype=torch.float64)
    rows = numbers.view(_GROUPS, width)[:count] - middle
    across = values.transpose(1, 2)
    weights = rows @ across
    for _ in range(_POWER_ITERATIONS):
        rows = _orthonormal(weights @ values)
        weights = rows @ across
    return (_axes(weights @ weights.transpose(1, 2)) @ weights).abs().argmax(dim=1)


def _orthonormal(rows: Tensor) -> Tensor:
    """Rows of length 1, at right angles to each other and to (1, 1, ...), that span the same.

    What they would span without their means, that is. ``rows``: float64 [images, rows, width].
    """
    if kernels_take(rows):
        from vllm_litelvlm.pruning.kernels.axes import orthonormal_in_one_launch

        return orthonormal_in_one_launch(rows)
    return orthonormal(rows)


def orthonormal(rows: Tensor) -> Tensor:
    """The same by LAPACK; at most as many rows as there are columns."""
    basis: Tensor = torch.linalg.qr(_centred(rows).transpose(1, 2)).Q
    # In place of a row that depends on others LAPACK gives any direction.
    return _centred(basis.transpose(1, 2))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


def _axes(squares: Tensor) -> Tensor:
    """Its eigenvectors as rows, float64 [images, rows, rows].

    By falling eigenvalue, each divided by its root; 0 where that is :data:`NOTHING`. With it the
    rows of which ``squares`` has the products become their principal axes.
    """
    if kernels_take(squares):
        from vllm_litelvlm.pruning.kernels.axes import axes_in_one_launch

        return axes_in_one_launch(squares, NOTHING)
    return axes(squares)


def axes(squares: Tensor) -> Tensor:
    """The same by LAPACK, which a GPU's host has to wait for."""
    values, vectors = torch.linalg.eigh(squares.nan_to_num())
    something = values > NOTHING * values[:, -1:]
    scales = torch.where(something, values.rsqrt(), 0.0)
    rising: Tensor = vectors * scales[:, None]
    return rising.flip(-1).transpose(1, 2)


def _line_up(
    tokens: Tensor, falling: Tensor, belongs: Tensor, groups: int, budget: int
) -> tuple[Tensor, Tensor]:
    """What :func:`line_up` gives, from features, float32 [images, patches, width]."""
    patches = tokens.shape[1]
    factor = budget / _AT_THE_MEAN / max(1, patches * (patches - 1))
    unit = nn.functional.normalize(tokens, dim=-1)
    if kernels_take(tokens):
        from vllm_litelvlm.pruning.kernels.suppression import line_up_in_one_launch

        likeness = unit @ unit.transpose(1, 2)
        total = likeness.sum(dim=(1, 2))
        return line_up_in_one_launch(likeness, total, falling, belongs, groups, factor)
    total = torch.stack([one.sum(dim=0).square().sum() for one in unit])

    def among(image: int, members: Ints) -> Floats:
        some = unit[image, torch.from_numpy(members)]
        likeness: Floats = (some @ some.T).cpu().numpy()
        return likeness

    return line_up(among, total, falling, belongs, groups, factor)


def line_up(
    among: Callable[[int, Ints], Floats],
    total: Tensor,
    falling: Tensor,
    belongs: Tensor,
    groups: int,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """Each group's tokens in a line: by falling attention, those that others suppress behind.

    Args:
        among: cosines of some patches of an image with each other.
        total: the sum of the cosines of all patches of an image, float32 [images].
        falling: patches by falling attention, int64 [images, patches].
        belongs: the group of each patch, int64 [images, patches].
        groups: how many there are.
        factor: from the sum over two different patches to the cosine above which one goes.

    Returns:
        Each patch's place in its group's line, int32 [images, patches], and of every group how
        many it has and how many of them are not suppressed, int32 [images, 2, groups].
    """
    images, patches = belongs.shape
    turns, counts = np.zeros((images, patches), np.int32), np.zeros((images, 2, groups), np.int32)
    limits = (total.cpu().numpy() - np.float32(patches)) * np.float32(factor)
    order, group = falling.cpu().numpy(), belongs.cpu().numpy()
    for image in range(images):
        of = group[image, order[image]]
        line = order[image, of.argsort(kind="stable")]
        sizes = np.bincount(of, minlength=groups)
        for number, members in enumerate(np.split(line, sizes.cumsum()[:-1])):
            stays = _survivors(among(image, members) > limits[image])
            members = np.concatenate([members[stays], members[~stays]])
            turns[image, members] = np.arange(len(members))
            counts[image, :, number] = len(members), stays.sum()
    device = belongs.device
    return torch.from_numpy(turns).to(device), torch.from_numpy(counts).to(device)


def _survivors(close: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of a line no earlier survivor is close to."""
    stays = np.ones(len(close), dtype=np.bool_)
    for one in range(len(close) - 1):
        if stays[one]:
            stays[one + 1 :] &= ~close[one, one + 1 :]
    return stays


def share_out(belongs: Tensor, turns: Tensor, counts: Tensor, budget: int, own: int) -> Tensor:
    """The first of every group's line, group by group.

    Args:
        belongs: the group of each patch, int64 [images, patches].
        turns: as :func:`line_up` gives it.
        counts: as :func:`line_up` gives it.
        budget: how many tokens to choose, [CLS] included.
        own: 1 if there is a [CLS], else 0.

    Returns:
        Places, int64 [images, budget]: :data:`CLS` first where there is one.
    """
    chosen = np.full((len(belongs), budget), CLS, dtype=np.int64)
    group, turn = belongs.cpu().numpy(), turns.cpu().numpy()
    for image, (sizes, left) in enumerate(counts.cpu().numpy().astype(np.int64)):
        shares = _shares(sizes, left, budget, budget - own)
        starts = own + shares.cumsum() - shares
        places = starts[group[image]] + turn[image]
        kept = (turn[image] < shares[group[image]]) & (places < budget)
        chosen[image, places[kept]] = kept.nonzero()[0]
    return torch.from_numpy(chosen).to(belongs.device)


def most_of_a_group(budget: int) -> int:
    """How many tokens a group gives where that fills the budget."""
    return _MOST * -(-budget // _FOR_EVERY)


def _shares(sizes: Ints, left: Ints, budget: int, count: int) -> Ints:
    """How many of ``count`` tokens each group gives; at least one of one group."""
    least = np.minimum(sizes, 1)
    most = np.minimum(left, most_of_a_group(budget))
    while most.sum() < budget:
        most = np.minimum(most + 1, sizes)
    rest = max(0, count - least.sum())
    ends = np.concatenate([[0], left.cumsum()]) * rest
    total = left.sum()
    ends = (2 * ends + total - 1 + ends // total % 2) // (2 * total)  # a half to the even number
    shares: Ints = np.minimum(least + np.diff(ends), most)
    missing = least.sum() + rest - shares.sum()
    for number in np.argsort(-left, kind="stable"):
        more = min(most[number] - shares[number], missing)
        shares[number] += more
        missing -= more
    return shares
