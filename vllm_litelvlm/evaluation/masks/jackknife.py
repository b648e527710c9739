"""Figures from sums over clusters, with their standard errors by the jackknife."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vllm_litelvlm.evaluation.analysis.estimate import Estimate

Sums = NDArray[np.float64]


def jackknife(parts: Sums, statistic: Callable[[Sums], Sums]) -> Estimate:
    """A figure that is computed from sums over clusters, here images or videos.

    Expressions about one image are not independent of each other, so whole images are left out,
    one at a time; with ``k`` of them the variance is ``(k - 1) / k`` times the summed squares of
    the ``k`` figures' distances from their mean (Tukey 1958). Nothing is drawn, so there is no
    seed. The standard error is None for one cluster, and where the figure does not exist without
    some cluster.

    Args:
        parts: what each cluster brings to each sum, float64 [clusters, sums]; at least one.
        statistic: from sums, [..., sums], to the figure, [...].
    """
    total = parts.sum(axis=0)
    value = float(statistic(total))
    count = len(parts)
    if count < 2:
        return Estimate(value, None, count)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = statistic(total - parts)
    if not np.isfinite(without).all():
        return Estimate(value, None, count)
    spread = np.square(without - without.mean()).sum()
    return Estimate(value, float(np.sqrt((count - 1) / count * spread)), count)
