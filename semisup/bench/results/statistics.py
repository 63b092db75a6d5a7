"""Statistics over label draws. The draw is the unit: average the initial weights within a draw before coming here."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "Difference",
    "Estimate",
    "LabelsNeeded",
    "crossing",
    "estimate",
    "holm",
    "labels_needed",
    "mean_ranks",
    "paired_difference",
    "within",
]

DIGITS = 12
"""Accuracies are counts over at most millions of images: what differs after 12 decimals is rounding, and a tie."""


@dataclass(frozen=True)
class Estimate:
    """Mean over n draws, sample standard deviation (n - 1) and 95% t interval; None where n is too small for it."""

    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference(Estimate):
    """An `Estimate` of paired differences, with the two-sided p value of the paired t test."""

    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and the interval mean ± t(n-1, 0.975) s / sqrt(n).

    Without values there is no mean; with one there is neither standard deviation nor interval. Equal values give the
    interval [mean, mean].
    """
    n = len(values)
    mean = statistics.fmean(values) if n else None
    if mean is None or n < 2:
        return Estimate(mean, None, None, None, n)
    from scipy.stats import t

    std = statistics.stdev(values)
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Estimate(mean, std, mean - half, mean + half, n)


def within(found: Estimate, lowest: float, highest: float) -> Estimate:
    """Return the estimate with its interval cut to what is possible: a t interval of few draws knows no bounds."""
    if found.low is None or found.high is None:
        return found
    return dataclasses.replace(found, low=max(found.low, lowest), high=min(found.high, highest))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """`values` minus `baseline` over the draws that both have, with the paired t test against 0.

    Without variance t is 0/0 or infinite; we take the limits: p = 1 if all differences are 0, p = 0 if all are the same
    other number.

    Args:
        values: accuracy by draw.
        baseline: accuracy by draw.
    """
    # Rounded, so that rounding errors are not taken for a tiny but perfectly reproducible difference.
    differences = [round(values[draw] - baseline[draw], DIGITS) for draw in sorted(values.keys() & baseline.keys())]
    found = estimate(differences)
    return Difference(found.mean, found.std, found.low, found.high, found.n, p=_t_test(found))


def _t_test(found: Estimate) -> float | None:
    """Two-sided p value of mean = 0; None below two draws."""
    if found.mean is None or found.std is None:
        return None
    if found.std == 0:
        return 1.0 if found.mean == 0 else 0.0
    from scipy.stats import t

    return 2 * float(t.sf(abs(found.mean) / (found.std / math.sqrt(found.n)), found.n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Holm 1979): below 0.05 where the family-wise error of 5% allows to reject.

    The i-th smallest of m (i = 1..m) times m - i + 1, made non-decreasing, at most 1; in the order given.
    """
    m = len(p_values)
    adjusted, highest = [0.0] * m, 0.0
    for i, position in enumerate(sorted(range(m), key=lambda position: p_values[position])):
        highest = max(highest, min(1.0, (m - i) * p_values[position]))
        adjusted[position] = highest
    return adjusted


def mean_ranks(values: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Mean over an entry's draws of its rank among the entries that have the draw.

    1 is the best; equal accuracies share the mean of their places. Entries without draws are left out.

    Args:
        values: accuracy by entry, then by draw.
    """
    ranks: dict[str, list[float]] = {}
    for draw in sorted({draw for by_draw in values.values() for draw in by_draw}):
        at = {entry: round(by_draw[draw], DIGITS) for entry, by_draw in values.items() if draw in by_draw}
        for entry, value in at.items():
            better = sum(other > value for other in at.values())
            equal = sum(other == value for other in at.values())  # itself too
            ranks.setdefault(entry, []).append(better + (equal + 1) / 2)
    return {entry: statistics.fmean(of_draws) for entry, of_draws in ranks.items()}


@dataclass(frozen=True)
class LabelsNeeded:
    """How many labels reach a target accuracy.

    `labels` is the geometric mean over draws, and [`low`, `high`] its 95% t interval in log10, cut to the budgets that
    were measured, if every draw reaches the target; else None. With `at_most` > 0, that many draws are there at their
    smallest budget already: `labels` is then an upper bound, and there is no interval.
    """

    labels: float | None
    low: float | None
    high: float | None
    reached: int
    at_most: int
    draws: int


def crossing(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Labels at which the piecewise linear curve of accuracy over log10(labels) first reaches `target`.

    The smallest budget if the target is reached there already; None if it is never reached. No extrapolation.

    Args:
        curve: (labels, accuracy) with labels >= 1, in any order.
        target: an accuracy.
    """
    points = sorted(curve)
    for i, (labels, accuracy) in enumerate(points):
        if accuracy >= target:
            if labels == points[0][0]:  # two budgets may charge the same number of labels
                return float(labels)
            before, lower = points[i - 1]  # lower < target <= accuracy: no earlier point is there
            start, end = math.log10(before), math.log10(labels)
            return float(10 ** (start + (end - start) * (target - lower) / (accuracy - lower)))
    return None


def labels_needed(curves: Sequence[Sequence[tuple[int, float]]], target: float) -> LabelsNeeded:
    """`crossing` of every draw's curve, and their `LabelsNeeded`.

    Args:
        curves: one per draw, each of at least one point.
        target: an accuracy.
    """
    found = [crossing(curve, target) for curve in curves]
    crossings = [labels for labels in found if labels is not None]
    at_most = sum(labels == min(curve)[0] for labels, curve in zip(found, curves, strict=True))
    if not curves or len(crossings) < len(curves):
        return LabelsNeeded(None, None, None, len(crossings), at_most, len(curves))
    logs = estimate([math.log10(labels) for labels in crossings])
    budgets = [math.log10(labels) for curve in curves for labels, _ in curve]
    logs = within(logs, min(budgets), max(budgets))
    labels, low, high = (None if x is None else 10**x for x in (logs.mean, logs.low, logs.high))
    if at_most:
        low = high = None  # of bounds, not of measured crossings
    return LabelsNeeded(labels, low, high, len(crossings), at_most, len(curves))
