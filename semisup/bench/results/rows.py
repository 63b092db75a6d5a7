"""One run of a suite as one line of `runs.csv`: what is measured, before any statistics."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from semisup.errors import SemisupError, nearest, raise_all
from semisup.files import write_atomically

__all__ = ["BINS", "Row", "read_rows", "write_rows"]

BINS = 15
"""Bins of a reliability diagram, as in the ECE of semisup.evaluate."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One run. Accuracies, ECE and coverage are fractions in [0, 1]; None is what was not measured, never NaN.

    Raises:
        SemisupError: a value of another type, not finite or out of range; a status that contradicts the rest.
    """

    entry: str  # the suite's name for this row of its tables
    method: str  # of the judged stage, or the baseline's name
    labels: str  # the budget as written: "40", "4/class", "10%", "all"
    n_labels: int  # labels charged: training + validation
    draw: int  # seed of the label draw
    init: int  # seed of the initial weights
    compute: str  # "" = as the recipe says, "400 steps", "20 s"
    status: str  # "done" or "failed"
    error: str  # one line; "" unless failed
    accuracy: float | None  # test set, last weights, EMA where the recipe has one
    raw_accuracy: float | None  # the same without EMA
    nll: float | None  # nats
    ece: float | None
    brier: float | None  # in [0, 2]
    coverage: float | None  # of the judged predictor's pseudo-labels on the unlabeled images
    kept_accuracy: float | None
    knn: float | None  # of the encoder judged, itself or by a probe: by up to 10,000 true labels, no few-label result
    probe: float | None  # likewise; a stage of kind probe or knn has an accuracy
    oracle_accuracy: float | None  # best on test over training: selected on test
    validation_accuracy: float | None
    per_class: list[float | None]  # test accuracy by class; [] if unknown
    reliability: list[list[float]]  # BINS of [count, mean confidence, accuracy], an empty one [0, 0, 0]; [] if unknown
    steps: int  # optimizer steps of all stages of the run
    seconds: float  # wall clock of all stages of the run, shared ones included
    calibrated_seconds: float | None  # steps x the step time measured alone, in one sitting
    parameters: int  # of the judged network; 0 for baselines
    fingerprint: str  # of the judged stage; "" if failed
    split_hash: str
    chosen: str  # hyper-parameters that the search chose; "" without a search

    def __post_init__(self) -> None:
        checked = ((field.name, _problem(field, getattr(self, field.name))) for field in FIELDS)
        problems = [f"{name} {problem}" for name, problem in checked if problem]
        if not problems:
            failed = self.status == "failed"
            if failed != bool(self.error):
                problems.append(f"error must say why a run failed, and only then: {self.status}, error={self.error!r}")
            if failed and self.accuracy is not None:
                problems.append(f"accuracy must be None on a failed run, got {self.accuracy}")
            if not failed and self.n_labels < 1:
                problems.append(f"n_labels must be at least 1 on a finished run, got {self.n_labels}")
        raise_all(problems, f"row of {self.entry!r}, labels {self.labels}, draw {self.draw}, init {self.init}")


FIELDS = dataclasses.fields(Row)
COLUMNS = [field.name for field in FIELDS]
HIGHEST = {"nll": math.inf, "brier": 2.0, "seconds": math.inf, "calibrated_seconds": math.inf}
"""Highest value of the float columns that are not fractions."""


def _problem(field: dataclasses.Field[Any], value: Any) -> str:
    """What is wrong with a value of a column; "" if nothing is."""
    kind, name = str(field.type), field.name
    if kind == "str":
        fits = isinstance(value, str) and len(value.splitlines()) <= 1
        if fits and name == "status" and value not in ("done", "failed"):
            return f"must be done or failed, got {value!r}"
        return "" if fits else f"must be text of one line, got {value!r}"
    if kind == "int":
        return "" if isinstance(value, int) and value >= 0 else f"must be an integer >= 0, got {value!r}"
    highest = HIGHEST.get(name, 1.0)
    if kind.startswith("float"):
        if value is None and kind.endswith("None"):
            return ""
        range_ = "finite and >= 0" if highest == math.inf else f"in [0, {highest:g}]"
        return "" if _between(value, highest) else f"must be a number {range_}, got {value!r}"
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
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= highest


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `runs.csv`, one line per row, columns as in :class:`Row`; a kill leaves the old file or the new one.

    Raises:
        SemisupError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_text(getattr(row, name)) for name in COLUMNS] for row in rows)
    write_atomically(path, text.getvalue().encode())


def read_rows(path: Path) -> list[Row]:
    """Read what :func:`write_rows` wrote.

    Raises:
        SemisupError: no such file, other columns, or values that do not fit; every problem with its line and column.
    """
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
    except FileNotFoundError as error:
        raise SemisupError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SemisupError(f"{path}: not a readable CSV file ({error})") from error
    header = lines[0] if lines else []
    problems = [f"line 1: unknown column {name!r}{nearest(name, COLUMNS)}" for name in header if name not in COLUMNS]
    problems += [f"line 1: column {name!r} is missing" for name in COLUMNS if name not in header]
    if not problems and header != COLUMNS:
        problems.append(f"line 1: the columns must be, in this order, {', '.join(COLUMNS)}")
    raise_all(problems, str(path))
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(COLUMNS):
            problems.append(f"line {number}: {len(cells)} columns, expected {len(COLUMNS)}")
            continue
        values, wrong = {}, []
        for field, cell in zip(FIELDS, cells, strict=True):
            try:
                values[field.name] = _value(str(field.type), cell)
            except ValueError:  # JSON's errors are ValueErrors
                wrong.append(f"line {number}, column {field.name}: not of type {field.type}: {cell!r}")
                continue
            if problem := _problem(field, values[field.name]):
                wrong.append(f"line {number}, column {field.name}: {problem}")
        problems += wrong
        if not wrong:
            try:
                rows.append(Row(**values))
            except SemisupError as error:  # columns that contradict one another
                problems.append(f"line {number}: {error}")
    raise_all(problems, str(path))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return json.dumps(value)
    return repr(float(value)) if isinstance(value, float) else str(value)  # float(): NumPy's repr names its type


def _value(kind: str, cell: str) -> Any:
    if kind == "str":
        return cell
    if kind == "int":
        return int(cell)
    if kind.startswith("float"):
        return None if not cell and kind.endswith("None") else float(cell)
    return json.loads(cell)
