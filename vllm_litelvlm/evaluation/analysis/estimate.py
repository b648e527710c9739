"""Means with their standard errors, over images."""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over images; the standard error is None where there was one image."""

    mean: float
    standard_error: float | None
    images: int

    def show(self, digits: int = 3) -> str:
        """Mean and standard error for a table."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.{digits}f}"
        return f"{self.mean:.{digits}f}{error}"

    def differs(self, value: float) -> bool:
        """Whether the mean is more than two standard errors away from ``value``."""
        return self.standard_error is not None and (
            abs(self.mean - value) > 2 * self.standard_error
        )


class Gathered:
    """Values by image: those of one image are averaged first, as they are not independent."""

    def __init__(self) -> None:
        self._values: dict[int, list[float]] = defaultdict(list)

    def add(self, image: int, value: float) -> None:
        """Note a value of an image."""
        self._values[image].append(value)

    def __bool__(self) -> bool:
        return bool(self._values)

    def estimate(self) -> Estimate:
        """The mean; there must be a value."""
        means = [statistics.fmean(values) for values in self._values.values()]
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
        return Estimate(statistics.fmean(means), error, len(means))
