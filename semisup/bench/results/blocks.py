"""Differences with the variance of a whole budget: label draws are the blocks, entries the treatments.

With three draws an entry's own paired t interval has two degrees of freedom and is 4.3 standard errors wide to each
side, so that a difference of 24 points can look like nothing. The entries of a budget were measured on the same draws:
that is a randomized complete block design, y_ij = mean + entry_i + draw_j + e_ij, whose k entries on n draws estimate
one residual variance with (k - 1)(n - 1) degrees of freedom (Cochran and Cox, Experimental Designs, 2nd ed. 1957, sec.
4.2; Montgomery, Design and Analysis of Experiments, sec. 4.1):

    r_ij = y_ij - mean_j y_ij - mean_i y_ij + mean y,   MSE = sum r_ij^2 / ((k - 1)(n - 1))
    interval of entry i minus entry b: d +- t((k - 1)(n - 1), 0.975) sqrt(2 MSE / n)

This holds where the entries' residuals have one spread, and that is checked: see `pool`.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FEW_DRAWS", "Pool", "pool", "pooled_interval", "residuals", "spread_p"]

FEW_DRAWS = 5
"""With so many draws or fewer a budget's variance is pooled: from six on, an entry's own interval is at most 1.3 times
as wide as one of many draws."""
LEVEL = 0.1
"""Below this p value of equal spread an entry is set apart. Higher than 0.05, since with few draws the test sees little
(Bancroft, Ann. Math. Stat. 15, 1944, on pooling after a test)."""
LEAST = 3
"""Entries in a pool, at least: of two, the pooled interval is that of their own paired t test."""
SIMULATED = 4000
"""Tables of pure noise that tell how unequal spreads look by chance: p is exact to 0.005 at 0.1."""


@dataclass(frozen=True)
class Pool:
    """The residual variance that some entries of one budget share."""

    variance: float
    """MSE, of one accuracy."""
    freedom: int
    """Degrees of freedom, (k - 1)(n - 1)."""
    draws: tuple[int, ...]
    entries: tuple[str, ...]
    """Those whose spread was pooled."""
    apart: tuple[str, ...]
    """Those with all the draws, set apart because their spread is another."""


def pool(values: Mapping[str, Mapping[int, float]], draws: Sequence[int]) -> Pool | None:
    """Pool the residual variance of the entries of one budget and compute that have every draw.

    The check for equal spread: an entry's share of the residual sum of squares is 1/k if all are equal; the sum of the
    squared shares is compared with that of tables of independent normal noise of the same size. While it is larger than
    in all but `LEVEL` of them, the entry with the largest share is set apart (as ISO 5725-2 does with Cochran's test),
    and the rest is looked at again.

    Measured by simulation (tests/bench/test_blocks.py): the intervals of 4 to 30 entries on 3 to 5 draws hold the true
    difference in 94 to 95 of 100 tables with equal spread, in 92 to 95 where one entry has three or eight times the
    others' spread, and in 93 to 96 where half of them have twice the others'.

    Args:
        values: accuracy by entry, then by draw.
        draws: all of them, at least two.

    Returns:
        None with fewer than two draws or three entries to pool, or without any residual.
    """
    tables = {
        entry: [by_draw[draw] for draw in draws] for entry, by_draw in values.items() if set(draws) <= set(by_draw)
    }
    apart: list[str] = []
    while len(draws) >= 2 and len(tables) >= LEAST:
        left = residuals(list(tables.values()))
        sums = [math.fsum(r * r for r in row) for row in left]
        if math.fsum(sums) < 1e-20:  # rounding: entries that differ by the same on every draw
            return None
        if spread_p(sums, len(draws)) >= LEVEL:
            freedom = (len(tables) - 1) * (len(draws) - 1)
            return Pool(math.fsum(sums) / freedom, freedom, tuple(draws), tuple(tables), tuple(apart))
        widest = list(tables)[sums.index(max(sums))]
        apart.append(widest)
        del tables[widest]
    return None


def residuals(table: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return what a table, entries by draws, has beyond the means of its entries and of its draws."""
    of_entries = [statistics.fmean(row) for row in table]
    of_draws = [statistics.fmean(column) for column in zip(*table, strict=True)]
    mean = statistics.fmean(of_entries)
    return [
        [y - entry - draw + mean for y, draw in zip(row, of_draws, strict=True)]
        for row, entry in zip(table, of_entries, strict=True)
    ]


def spread_p(sums: Sequence[float], draws: int) -> float:
    """Return how often normal noise of one spread has residuals as unequally shared out among its entries.

    Args:
        sums: residual sum of squares of each entry, not all 0.
        draws: n.
    """
    total = math.fsum(sums)
    seen = math.fsum((part / total) ** 2 for part in sums)
    noise = _concentrations(len(sums), draws)
    return float((noise >= seen).mean())


@functools.lru_cache(maxsize=64)
def _concentrations(entries: int, draws: int) -> NDArray[np.float64]:
    """Sum of squared shares in `SIMULATED` tables of standard normal noise; the same in every process."""
    import numpy as np

    noise = np.random.default_rng((entries, draws)).standard_normal((SIMULATED, entries, draws))
    noise -= noise.mean(axis=2, keepdims=True)
    noise -= noise.mean(axis=1, keepdims=True)
    sums = np.square(noise).sum(axis=2)
    shares = sums / sums.sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = np.square(shares).sum(axis=1)
    return found


def pooled_interval(difference: float, pool: Pool) -> tuple[float, float, float]:
    """Return the 95% interval of the difference of two entries of a pool, and the two-sided p value of 0.

    Args:
        difference: of their means over the pool's draws.
        pool: has both.
    """
    from scipy.stats import t

    error = math.sqrt(2 * pool.variance / len(pool.draws))
    half = float(t.ppf(0.975, pool.freedom)) * error
    return difference - half, difference + half, 2 * float(t.sf(abs(difference) / error, pool.freedom))
