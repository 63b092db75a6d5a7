"""The metrics of a finished stage or run, one line each: every file and table that shows them is made from this list.

A `Column` says where a metric comes from (`key`, in the metrics of a stage's record), what it is called in
`runs.csv` and in a suite's summary (`name`), and how people read it. `runs.csv`, `leaderboard.json`, `leaderboard.md`,
`report.html` and the table that `semisup run` prints have a column for each line below, where it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from semisup.records import is_finite
from semisup.text import count, number, percent

__all__ = ["COLUMNS", "UNEQUAL", "Column", "headline", "measured"]

Format = Literal["percent", "decimal", "seconds", "count"]
Better = Literal["higher", "lower", ""]
WRITERS: dict[Format, Callable[[float], str]] = {
    "percent": percent,
    "decimal": lambda value: number(value, 3),
    "seconds": lambda value: number(value, 1),
    "count": count,
}


@dataclass(frozen=True)
class Column:
    """One metric: a number for each run, never negative."""

    name: str
    """Letters and underscores: in `runs.csv` and in the cells of `leaderboard.json`."""
    key: str
    """In the metrics of a stage's record; `run/...` is of all stages of a benchmark's run together."""
    title: str
    """Of a table's column."""
    help: str
    """What it is, for a legend or a tooltip."""
    format: Format
    """How it is written; one in percent is a fraction from 0 to 1."""
    better: Better = ""
    """Which end is good; empty where neither is."""

    def write(self, value: float) -> str:
        """Write a value for people."""
        return WRITERS[self.format](value)

    def problem(self, value: Any) -> str:
        """Say what is wrong with a measured value; empty if nothing is."""
        highest = 1.0 if self.format == "percent" else math.inf
        if is_finite(value) and 0 <= value <= highest:
            return ""
        return f"must be a number {'in [0, 1]' if highest == 1 else 'finite and >= 0'}, got {value!r}"


UP: Better = "higher"
DOWN: Better = "lower"

COLUMNS = (
    Column("accuracy", "test/accuracy", "accuracy", "percent of the test set, EMA where there is one", "percent", UP),
    Column("balanced_accuracy", "test/balanced_accuracy", "balanced", "mean recall of the classes", "percent", UP),
    Column("macro_f1", "test/macro_f1", "macro F1", "mean F1 of the classes", "percent", UP),
    Column("majority_rate", "test/majority_rate", "majority class", "accuracy of always naming it", "percent"),
    Column("most_frequent", "test/most_frequent", "most predicted", "share of the commonest prediction", "percent"),
    Column("raw_accuracy", "test_raw/accuracy", "without EMA", "accuracy of the raw weights", "percent", UP),
    Column("nll", "test/nll", "NLL", "negative log-likelihood, nats", "decimal", DOWN),
    Column("ece", "test/ece", "ECE", "expected calibration error, percent", "percent", DOWN),
    Column("brier", "test/brier", "Brier", "Brier score, 0 to 2", "decimal", DOWN),
    Column("knn", "knn/accuracy", "kNN", "neighbors on features, up to 10,000 true labels", "percent", UP),
    Column("probe", "probe/accuracy", "probe", "linear on features, up to 10,000 true labels", "percent", UP),
    Column("coverage", "pseudo_labels/coverage", "coverage", "unlabeled images that get a label", "percent", UP),
    Column("kept_accuracy", "pseudo_labels/kept_accuracy", "accuracy of kept", "of these labels", "percent", UP),
    Column("validation_accuracy", "validation/accuracy", "validation", "on the validation labels", "percent", UP),
    Column("oracle_accuracy", "oracle/accuracy", "oracle", "selected on the test set: no result", "percent", UP),
    Column("steps", "run/steps", "steps", "optimizer steps of all stages", "count"),
    Column("seconds", "run/seconds", "seconds", "wall clock of all stages, shared ones too", "seconds", DOWN),
    Column("calibrated_seconds", "run/calibrated_seconds", "seconds alone", "steps x one step alone", "seconds", DOWN),
)
"""In the order of the tables."""
UNEQUAL = 3.0
"""Ratio of class sizes from which accuracy says little of the small classes."""


def headline(class_ratio: float) -> Column:
    """Return what results are ranked, sorted and compared by: accuracy, or balanced accuracy where classes are unequal.

    Args:
        class_ratio: how many times the largest class is as large as the smallest (`semisup.data.budget.class_ratio`).
    """
    wanted = "balanced_accuracy" if class_ratio > UNEQUAL else "accuracy"
    return next(column for column in COLUMNS if column.name == wanted)


def measured(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return every column's value in a record's metrics, by the column's name; None where it was not measured.

    Args:
        metrics: by key; what is no finite number counts as not measured.
    """
    found = {column.name: metrics.get(column.key) for column in COLUMNS}
    return {name: value if is_finite(value) else None for name, value in found.items()}
