from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from semisup.bench.results.statistics import (
    crossing,
    estimate,
    holm,
    labels_needed,
    mean_ranks,
    paired_difference,
)

# --- the interval -------------------------------------------------------------------------------------------------


def test_the_interval_is_scipys():
    values = [0.61, 0.64, 0.58, 0.66, 0.6]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.std, found.n) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        5,
    )
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_two_draws_by_hand():
    found = estimate([0.5, 0.7])  # s = 0.1414, s / sqrt(2) = 0.1, t(1, 0.975) = tan(0.475 pi) = 12.706
    assert (found.low, found.high) == (pytest.approx(0.6 - 1.2706, abs=1e-4), pytest.approx(0.6 + 1.2706, abs=1e-4))


def test_one_draw_and_none():
    one, none = estimate([0.4]), estimate([])
    assert (one.mean, one.std, one.low, one.high, one.n) == (0.4, None, None, None, 1)
    assert (none.mean, none.std, none.low, none.high, none.n) == (None, None, None, None, 0)


def test_equal_values_have_an_interval_of_no_width():
    found = estimate([0.1, 0.1, 0.1])
    assert found.std == 0
    assert found.low == found.high == found.mean


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_the_mean_in_95_of_100_suites(n):
    generator = np.random.default_rng(0)
    samples = generator.normal(0.6, 0.05, size=(2000, n)).tolist()
    covered = [found.low <= 0.6 <= found.high for found in map(estimate, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


# --- paired differences -------------------------------------------------------------------------------------------


def test_the_paired_test_is_scipys():
    a = {0: 0.71, 1: 0.66, 2: 0.74, 3: 0.69}
    b = {0: 0.65, 1: 0.64, 2: 0.66, 3: 0.7}
    found = paired_difference(a, b)
    expected = stats.ttest_rel(list(a.values()), list(b.values()))
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.mean == pytest.approx(0.0375)
    back = paired_difference(b, a)
    assert (back.mean, back.low, back.p) == (pytest.approx(-found.mean), pytest.approx(-found.high), found.p)


def test_only_common_draws_are_paired_by_draw_and_not_by_place():
    a = {4: 0.9, 0: 0.5, 1: 0.6}
    b = {1: 0.5, 0: 0.4, 7: 0.0}
    found = paired_difference(a, b)
    assert found.n == 2
    assert found.mean == pytest.approx(0.1)


def test_differences_without_variance():
    base = {0: 0.5, 1: 0.6, 2: 0.7}
    same = paired_difference(base, base)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1.0)
    shifted = paired_difference({draw: value + 0.1 for draw, value in base.items()}, base)  # up to rounding
    assert (shifted.std, shifted.p) == (0, 0.0)
    assert (shifted.low, shifted.mean, shifted.high) == pytest.approx((0.1, 0.1, 0.1))


def test_rounding_errors_are_no_difference():
    base = {0: 0.3, 1: 0.3}
    found = paired_difference({0: 0.1 + 0.2, 1: 0.1 + 0.2}, base)  # 0.30000000000000004
    assert (found.mean, found.p) == (0, 1.0)


def test_one_common_draw_and_none():
    one, none = paired_difference({0: 0.5}, {0: 0.4}), paired_difference({0: 0.5}, {1: 0.4})
    assert (one.n, one.mean, one.low, one.p) == (1, pytest.approx(0.1), None, None)
    assert (none.n, none.mean, none.low, none.p) == (0, None, None, None)


def test_the_paired_test_rejects_5_in_100_where_nothing_differs():
    generator = np.random.default_rng(1)
    pairs = generator.normal(0.6, 0.05, size=(2000, 2, 4)).tolist()
    rejected = [paired_difference(dict(enumerate(a)), dict(enumerate(b))).p < 0.05 for a, b in pairs]
    assert np.mean(rejected) == pytest.approx(0.05, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


# --- Holm ---------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; the last is lifted to 0.06.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.4, 0.9]) == pytest.approx([1.0, 1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    assert holm([0.0, 0.0, 1.0]) == [0.0, 0.0, 1.0]
    assert holm([0.01, 0.01, 0.5]) == pytest.approx([0.03, 0.03, 0.5])


def test_holm_rejects_what_the_step_down_procedure_rejects():
    generator = np.random.default_rng(2)
    for _ in range(200):
        p = (generator.uniform(size=6) ** 3).tolist()
        rejected: set[int] = set()
        for i, position in enumerate(np.argsort(p)):  # stop at the first that is not below 0.05 / (m - i)
            if p[position] > 0.05 / (6 - i):
                break
            rejected.add(int(position))
        assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= 0.05} == rejected


# --- ranks --------------------------------------------------------------------------------------------------------


def test_ranks_are_those_of_scipy():
    generator = np.random.default_rng(3)
    table = generator.integers(50, 56, size=(5, 4)) / 100  # entries x draws, with ties
    expected = stats.rankdata(-table, axis=0).mean(axis=1)
    found = mean_ranks({f"e{i}": dict(enumerate(row)) for i, row in enumerate(table.tolist())})
    assert list(found.values()) == pytest.approx(expected.tolist())


def test_ties_share_and_missing_draws_are_not_ranked():
    found = mean_ranks({"a": {0: 0.9, 1: 0.1}, "b": {0: 0.1 + 0.2, 1: 0.5}, "c": {0: 0.3}, "d": {}})
    assert found == {"a": 1.5, "b": (2.5 + 1) / 2, "c": 2.5}


# --- labels needed ------------------------------------------------------------------------------------------------


def slow_crossing(curve, target):
    """The smallest of 200,001 label counts on a grid, even in the logarithm, whose interpolated accuracy is enough."""
    curve = sorted(curve)
    logs = np.log10([n for n, _ in curve])
    grid = np.linspace(logs[0], logs[-1], 200_001)
    there = np.interp(grid, logs, [a for _, a in curve]) >= target
    return float(10 ** grid[there.argmax()]) if there.any() else None


def test_the_crossing_by_hand():
    # Half of the way from 0.5 to 0.7 is half of the way from log 10 to log 1000: 100.
    assert crossing([(10, 0.5), (1000, 0.7)], 0.6) == pytest.approx(100)
    assert crossing([(1000, 0.7), (10, 0.5)], 0.7) == pytest.approx(1000)  # any order; a measured point


def test_the_crossing_is_the_first_on_a_grid():
    generator = np.random.default_rng(4)
    for _ in range(50):
        curve = [(n, float(a)) for n, a in zip([10, 20, 40, 100, 250], generator.uniform(size=5), strict=True)]
        target = float(generator.uniform())
        expected = slow_crossing(curve, target)
        found = crossing(curve, target)
        assert found == (expected if expected is None else pytest.approx(expected, rel=1e-4))


def test_the_crossing_of_a_curve_that_falls_again():
    assert crossing([(10, 0.4), (100, 0.8), (1000, 0.5), (10_000, 0.9)], 0.6) == pytest.approx(10**1.5)


def test_no_crossing_is_extrapolated():
    assert crossing([(10, 0.5), (100, 0.6)], 0.61) is None
    assert crossing([(10, 0.5), (100, 0.6)], 0.4) == 10
    assert crossing([(40, 0.5)], 0.5) == 40
    assert crossing([], 0.5) is None


def test_two_budgets_of_the_same_number_of_labels():
    curve = [(40, 0.7), (40, 0.5), (100, 0.9)]
    assert crossing(curve, 0.6) == 40
    assert labels_needed([curve], 0.6).at_most == 1
    assert crossing(curve, 0.8) == pytest.approx(10 ** ((math.log10(40) + 2) / 2))


def test_labels_needed_is_a_geometric_mean_with_its_interval():
    curves = [[(10, 0.4), (1000, 0.8)], [(10, 0.5), (1000, 0.7)], [(10, 0.2), (1000, 0.7)]]
    logs = [2.0, 2.0, 1 + 2 * 0.8]
    found = labels_needed(curves, 0.6)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(logs), scale=stats.sem(logs))
    assert found.labels == pytest.approx(stats.gmean([10**x for x in logs]))
    assert (found.low, found.high) == (pytest.approx(10**low), 1000), "no further than was measured"
    assert 10**high > 1000
    assert (found.reached, found.at_most, found.draws) == (3, 0, 3)


def test_labels_needed_only_where_every_draw_gets_there():
    curves = [[(10, 0.4), (1000, 0.8)], [(10, 0.1), (1000, 0.2)]]
    found = labels_needed(curves, 0.6)
    assert (found.labels, found.low, found.high, found.reached, found.draws) == (None, None, None, 1, 2)
    nothing = labels_needed([], 0.6)
    assert (nothing.labels, nothing.reached, nothing.draws) == (None, 0, 0)


def test_labels_needed_has_no_interval_where_a_draw_is_only_a_bound():
    found = labels_needed([[(10, 0.7), (1000, 0.8)], [(10, 0.4), (1000, 0.8)]], 0.6)
    assert (found.labels, found.low, found.high) == (pytest.approx(10**1.5), None, None)
    assert (found.reached, found.at_most) == (2, 1)


def test_labels_needed_of_one_draw_has_no_interval():
    found = labels_needed([[(10, 0.4), (1000, 0.8)]], 0.6)
    assert (found.labels, found.low, found.high) == (pytest.approx(100), None, None)
