from __future__ import annotations

import random

import pytest
from paired import compare, median_interval


def test_the_ratio_is_that_of_the_sums_of_each_block() -> None:
    found = compare([[1.0, 3.0], [9.0], [2.0, 2.0]], [[2.0, 2.0], [3.0], [1.0, 1.0]])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)
    assert str(found) == "2.00 (1.00-3.00)"


def test_an_outlier_block_moves_the_median_not_at_all() -> None:
    blocks = [[1.1]] * 9 + [[50.0]]
    assert compare(blocks, [[1.0]] * 10).median == pytest.approx(1.1)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError):
        compare([[1.0], [1.0]], [[1.0]])


# Places from below of the 95% interval's lower end: the binomial table.
@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (3, 1), (5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (20, 6), (30, 10)]
)
def test_the_interval_is_the_binomial_one(n: int, k: int) -> None:
    values = [float(i) for i in range(1, n + 1)]
    random.Random(0).shuffle(values)
    assert median_interval(values) == (k, n + 1 - k)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    draws = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([draws.expovariate(1.0) for _ in range(10)])
        hits += low <= 0.6931 <= high
    assert 0.965 < hits / 2000 < 0.99  # 97.9% exactly
