"""Rows and summaries for the benchmark's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semisup.bench.results.rows import Row
from semisup.bench.results.summary import summarize
from semisup.columns import COLUMNS

PLAIN: dict[str, Any] = {
    "method": "fixmatch", "labels": "40", "n_labels": 40, "draw": 0, "init": 0, "compute": "", "status": "done",
    "error": "", "per_class": [], "reliability": [], "parameters": 1000, "fingerprint": "f", "split_hash": "s",
    "chosen": "",
}  # fmt: skip


METRICS: dict[str, float | None] = {"accuracy": 0.5, "steps": 100, "seconds": 10.0}


def row(entry: str, **changed: Any) -> Row:
    """One finished run at 40 labels; a failed one with `status="failed"`. Metrics are given by their column's name."""
    failed = {"accuracy": None, "error": "RuntimeError: diverged"} if changed.get("status") == "failed" else {}
    changed = failed | changed
    metrics = {column.name: changed.pop(column.name, METRICS.get(column.name)) for column in COLUMNS}
    return Row(**(PLAIN | {"entry": entry} | changed), metrics=metrics)


def runs(entry: str, labels: int | str, accuracies: Sequence[float], **changed: Any) -> list[Row]:
    """One finished run per accuracy, draws 0, 1, ..., at a budget of a plain number (or "all": 1000) of labels."""
    n_labels = 1000 if labels == "all" else int(labels)
    return [
        row(entry, labels=str(labels), n_labels=n_labels, draw=draw, accuracy=accuracy, **changed)
        for draw, accuracy in enumerate(accuracies)
    ]


def summary(rows: Sequence[Row], **changed: Any) -> dict[str, Any]:
    """Their summary, from `facts`."""
    return summarize(rows, **facts(rows, **changed))


def facts(rows: Sequence[Row], **changed: Any) -> dict[str, Any]:
    """A suite's facts: ten classes, one baseline, "supervised", entries in the order of the rows."""
    given: dict[str, Any] = {
        "suite": "small", "command": "semisup bench small", "baselines": ["supervised"],
        "entries": list(dict.fromkeys(row.entry for row in rows)), "targets": [], "classes": list("0123456789"),
        "num_test": 500, "provenance": {}, "settings": "", "saved": {},
    }  # fmt: skip
    return given | changed


def cell(made: dict[str, Any], entry: str, labels: int | str = 40, compute: str = "") -> dict[str, Any]:
    """The one cell of an entry."""
    (found,) = [c for c in made["cells"] if (c["entry"], c["labels"], c["compute"]) == (entry, str(labels), compute)]
    return found
