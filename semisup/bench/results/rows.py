"""One run of a suite as one line of `runs.csv`: what is measured, before any statistics."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semisup.columns import COLUMNS, Column
from semisup.errors import SemisupError, nearest, raise_all, refuse_special
from semisup.files import write_atomically
from semisup.records import is_finite
from semisup.text import csv_text, from_csv_text

__all__ = ["BINS", "Row", "read_rows", "write_rows"]

LARGEST = 2**63
"""Integers are below it."""
BINS = 15
"""Bins of a reliability diagram, as in the ECE of semisup.evaluate."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One run.

    Raises:
        SemisupError: a value of another type, not finite or out of range; a status that contradicts the rest.
    """

    entry: str
    """The suite's name for this row of its tables."""
    method: str
    """Of the evaluated stage, or the baseline's name."""
    labels: str
    """The budget as written: `40`, `4/class`, `10%`, `all`."""
    n_labels: int
    """Labels charged: training and validation."""
    draw: int
    """Seed of the label draw."""
    init: int
    """Seed of the initial weights."""
    compute: str
    """Empty: as the recipe says; `400 steps`, `20 s`, `equal steps`."""
    status: str
    """`done` or `failed`."""
    error: str
    """One line; empty unless failed."""
    metrics: Mapping[str, float | None]
    """By name of its `semisup.columns.Column`; None, or no entry, is what was not measured, never NaN."""
    per_class: list[float | None]
    """Test accuracy by class; empty if unknown."""
    reliability: list[list[float]]
    """`BINS` of [count, mean confidence, accuracy], an empty one [0, 0, 0]; no bins if unknown."""
    parameters: int
    """Of the evaluated network; 0 for baselines."""
    fingerprint: str
    """Of the evaluated stage; empty if failed."""
    split_hash: str
    """Of the images that were labeled."""
    chosen: str
    """Hyper-parameters that the search chose; empty without a search."""

    def __post_init__(self) -> None:
        problems = [f"{name} {problem}" for name, problem in self._problems() if problem]
        if not problems:
            failed = self.status == "failed"
            if failed != bool(self.error):
                problems.append(f"error must say why a run failed, and only then: {self.status}, error={self.error!r}")
            if failed and self.accuracy is not None:
                problems.append(f"accuracy must be None on a failed run, got {self.accuracy}")
            if not failed and self.n_labels < 1:
                problems.append(f"n_labels must be at least 1 on a finished run, got {self.n_labels}")
        raise_all(problems, f"row of {self.entry!r}, labels {self.labels}, draw {self.draw}, init {self.init}")

    def _problems(self) -> Iterator[tuple[str, str]]:
        for name, kind in FIELDS.items():
            yield name, _problem(name, kind, getattr(self, name))
        for name in self.metrics:
            if name not in METRICS:
                yield f"metrics.{name}", f"is no column{nearest(name, METRICS)}"
        for name, column in METRICS.items():
            value = self.metrics.get(name)
            yield name, "" if value is None else column.problem(value)

    @property
    def accuracy(self) -> float | None:
        """Of the test set, by the last weights; None if the run failed or was not evaluated by it."""
        return self.metrics.get("accuracy")


METRICS: dict[str, Column] = {column.name: column for column in COLUMNS}
FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Row) if field.name != "metrics"}
"""Name -> type of what is no metric."""


def header() -> list[str]:
    """Return the columns of `runs.csv`: whose run it is, the metrics, the rest."""
    names = list(FIELDS)
    place = names.index("per_class")
    return [*names[:place], *METRICS, *names[place:]]


def _problem(name: str, kind: str, value: Any) -> str:
    """Say what is wrong with a value of a field that is no metric; empty if nothing is."""
    if kind == "str":
        fits = isinstance(value, str) and len(value.splitlines()) <= 1
        if fits and name == "status" and value not in ("done", "failed"):
            return f"must be done or failed, got {value!r}"
        return "" if fits else f"must be text of one line, got {value!r}"
    if kind == "int":
        fits = isinstance(value, int) and 0 <= value < LARGEST
        return "" if fits else f"must be an integer from 0 to 2**63 - 1, got {value!r}"
    if not isinstance(value, list):
        return f"must be a list, got {value!r}"
    if name == "per_class":
        wrong = [v for v in value if v is not None and not _between(v, 1.0)]
        return f"must hold numbers in [0, 1] or None, got {wrong[0]!r}" if wrong else ""
    if value and len(value) != BINS:
        return f"must have {BINS} bins or none, got {len(value)}"
    for row in value:
        if not (isinstance(row, list) and len(row) == 3 and all(map(_between, row, (math.inf, 1.0, 1.0)))):
            return f"must hold [count, confidence, accuracy], the last two in [0, 1], got {row!r}"
    return ""


def _between(value: Any, highest: float) -> bool:
    """Whether `value` is a finite number from 0 to `highest`."""
    return is_finite(value) and 0 <= value <= highest


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `runs.csv`, one line per row; a kill leaves the old file or the new one.

    Text that a spreadsheet would take for a formula gets a quote in front; `read_rows` takes it away.

    Raises:
        SemisupError: the file cannot be written.
    """
    names = header()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = {name: getattr(row, name) for name in FIELDS} | {name: row.metrics.get(name) for name in METRICS}
        writer.writerow([_to_cell(values[name]) for name in names])
    write_atomically(path, text.getvalue().encode())


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote, now or in an earlier version: a metric without a column was not measured.

    Raises:
        SemisupError: no such file, unknown or missing columns, or values that do not fit; every problem with its line
            and column.
    """
    refuse_special(path)
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
    except FileNotFoundError as error:
        raise SemisupError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SemisupError(f"{path}: not a readable CSV file ({error})") from error
    names = lines[0] if lines else []
    known = header()
    problems = [f"line 1: unknown column {name!r}{nearest(name, known)}" for name in names if name not in known]
    problems += [f"line 1: column {name!r} is missing" for name in FIELDS if name not in names]
    problems += [f"line 1: column {name!r} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    raise_all(problems, str(path))
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(names):
            problems.append(f"line {number}: {len(cells)} columns, expected {len(names)}")
            continue
        row = _read_row(dict(zip(names, cells, strict=True)), number, problems)
        if row is not None:
            rows.append(row)
    raise_all(problems, str(path))
    return rows


def _read_row(cells: Mapping[str, str], number: int, problems: list[str]) -> Row | None:
    """Read one line; what is wrong with it goes to `problems`."""
    values: dict[str, Any] = {}
    wrong = []
    for name, cell in cells.items():
        kind = FIELDS.get(name, "float | None")
        try:
            values[name] = _from_cell(kind, cell)
        except (ValueError, RecursionError):  # JSON's errors are ValueErrors
            wrong.append(f"line {number}, column {name}: not of type {kind}: {cell[:200]!r}")
            continue
        problem = _problem(name, kind, values[name]) if name in FIELDS else ""
        if name in METRICS and values[name] is not None:
            problem = METRICS[name].problem(values[name])
        if problem:
            wrong.append(f"line {number}, column {name}: {problem}")
    problems += wrong
    if wrong:
        return None
    try:
        metrics = {name: values.get(name) for name in METRICS}
        return Row(**{name: values[name] for name in FIELDS}, metrics=metrics)
    except SemisupError as error:  # columns that contradict one another
        problems.append(f"line {number}: {error}")
        return None


def _to_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, str):
        return csv_text(value)
    return repr(float(value)) if isinstance(value, float) else str(value)  # float(): NumPy's repr names its type


def _from_cell(kind: str, cell: str) -> Any:
    if kind == "str":
        return from_csv_text(cell)
    if kind == "int":
        return int(cell)
    if kind.startswith("float"):
        return float(cell) if cell else None
    return json.loads(cell)
