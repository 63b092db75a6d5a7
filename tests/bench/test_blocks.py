"""Pooled intervals: against a slow fit of the same linear model, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from semisup.bench.results.blocks import LEVEL, Pool, pool, pooled_interval, residuals, spread_p


def table(y: NDArray[np.float64]) -> dict[str, dict[int, float]]:
    """Entries e0, e1, ... by draws."""
    return {f"e{i}": {draw: float(value) for draw, value in enumerate(row)} for i, row in enumerate(y)}


def found(y: NDArray[np.float64]) -> Pool:
    made = pool(table(y), range(y.shape[1]))
    assert made is not None
    return made


def test_the_interval_is_that_of_least_squares_on_entries_and_draws() -> None:
    """The two-way model with dummy variables, its residual variance and the standard error of a contrast."""
    k, n = 5, 3
    y = np.random.default_rng(0).normal(0.6, 0.05, (k, n))
    entry, draw = (side.ravel() for side in np.meshgrid(np.arange(k), np.arange(n), indexing="ij"))
    columns = [entry == i for i in range(k)] + [draw == j for j in range(1, n)]
    x = np.stack(columns, axis=1).astype(float)
    solution, squares, rank, _ = np.linalg.lstsq(x, y.ravel(), rcond=None)
    freedom = k * n - rank
    variance = squares[0] / freedom
    contrast = np.zeros(x.shape[1])
    contrast[2], contrast[0] = 1, -1
    error = np.sqrt(variance * contrast @ np.linalg.inv(x.T @ x) @ contrast)
    made = found(y)
    assert (made.freedom, made.entries) == (freedom, tuple(f"e{i}" for i in range(k)))
    assert made.variance == pytest.approx(variance)
    difference = float(y[2].mean() - y[0].mean())
    assert difference == pytest.approx(contrast @ solution)
    low, high, p = pooled_interval(difference, made)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, freedom, difference, error))
    assert p == pytest.approx(2 * stats.t.sf(abs(difference / error), freedom))
    assert np.abs(np.sum(residuals(y.tolist()), axis=0)).max() < 1e-12


def test_of_two_entries_it_would_be_the_paired_t_test() -> None:
    a, b = [0.5, 0.55, 0.7], [0.6, 0.6, 0.9]
    squares = sum(r * r for row in residuals([a, b]) for r in row)
    shared = Pool(squares / 2, 2, (0, 1, 2), ("a", "b"), ())
    low, high, p = pooled_interval(np.mean(b) - np.mean(a), shared)
    test = stats.ttest_rel(b, a)
    assert p == pytest.approx(test.pvalue)
    assert (low, high) == pytest.approx(tuple(test.confidence_interval()))


@pytest.mark.parametrize(("wide", "least"), [(1.0, 0.93), (8.0, 0.90)])
def test_the_interval_holds_the_truth_as_often_as_it_says(wide: float, least: float) -> None:
    """6 entries on 3 draws, one of them of that many times the spread; the draws themselves differ much more."""
    generator = np.random.default_rng(1)
    hits, apart = [], 0
    for _ in range(400):
        y = 3 * generator.normal(size=(1, 3)) + generator.normal(size=(6, 3)) * [[1.0]] * 6
        y[5] *= wide
        made = pool(table(y), range(3))
        if made is None or "e0" not in made.entries:
            continue
        apart += "e5" in made.apart
        for entry in made.entries[1:]:
            low, high, _ = pooled_interval(float(np.mean(y[int(entry[1:])] - y[0])), made)
            hits.append(low <= 0 <= high)
    assert least < np.mean(hits) < 0.97
    assert (apart > 300) is (wide > 1)


def test_equal_spreads_are_called_unequal_as_often_as_the_level_says() -> None:
    generator = np.random.default_rng(2)
    tables = generator.normal(size=(1000, 6, 4))
    sums = [[sum(r * r for r in row) for row in residuals(y.tolist())] for y in tables]
    p = [spread_p(of_entries, 4) for of_entries in sums]
    assert np.mean(np.array(p) < LEVEL) == pytest.approx(LEVEL, abs=0.03)


def test_nothing_is_pooled_without_enough_to_pool() -> None:
    y = np.random.default_rng(3).normal(size=(4, 3))
    assert pool(table(y[:2]), range(3)) is None
    assert pool(table(y), range(1)) is None
    assert pool(table(y), range(4)) is None, "no entry has a fourth draw"
    assert pool(table(np.arange(3.0) + np.arange(4.0)[:, None]), range(3)) is None, "no residual at all"
    values = table(np.random.default_rng(0).normal(size=(4, 3)))
    del values["e3"][0]
    made = pool(values, range(3))
    assert made is not None and made.entries == ("e0", "e1", "e2"), "of an entry without all draws nothing is used"
