"""Two things timed in turn, A B A B ..., so that what else the machine does meets both: what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Ratio", "compare", "median_interval"]


@dataclass(frozen=True)
class Ratio:
    """Median over blocks of (sum of A) / (sum of B), with an interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def compare(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Ratio:
    """Return the ratio of two timings.

    Args:
        first: blocks of seconds of A.
        second: as many blocks of B, each measured in turn with its partner.

    Raises:
        ValueError: no blocks, or not as many of each.
    """
    ratios = [sum(a) / sum(b) for a, b in zip(first, second, strict=True)]
    return Ratio(median(ratios), *median_interval(ratios))


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return an interval that holds the true median with probability `level`, whatever the distribution.

    Of fewer than six values (at 0.95) none does, and theirs is from the least to the greatest.

    The k-th value from below and from above, for the greatest k with P(Binomial(n, 1/2) < k) <= (1 - level) / 2.

    Args:
        values: independent measurements, at least one.
        level: in (0, 1).
    """
    ordered, n = sorted(values), len(values)
    k, tail = 1, 2.0**-n
    while k < (n + 1) // 2 and (tail := tail + math.comb(n, k) * 2.0**-n) <= (1 - level) / 2:
        k += 1
    return ordered[k - 1], ordered[n - k]
