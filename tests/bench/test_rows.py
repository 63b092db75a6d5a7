from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semisup.bench.results.facts import read_facts
from semisup.bench.results.rows import Row, read_rows, write_rows
from semisup.columns import COLUMNS
from semisup.errors import SemisupError

PLAIN: dict[str, Any] = {
    "entry": "fixmatch", "method": "fixmatch", "labels": "4/class", "n_labels": 40, "draw": 1, "init": 2,
    "compute": "400 steps", "status": "done", "error": "", "per_class": [0.5, None, 1.0],
    "reliability": [[3.0, 0.5, 1 / 3]] + [[0.0, 0.0, 0.0]] * 14, "parameters": 77562, "fingerprint": "abc",
    "split_hash": "def", "chosen": '{"lr": 0.1}',
}  # fmt: skip
MEASURED: dict[str, Any] = {
    "accuracy": 0.1 + 0.2,
    "nll": 1.5,
    "coverage": 0.0,
    "probe": 1.0,
    "steps": 400,
    "seconds": 12.25,
}
DEAD: dict[str, Any] = {"status": "failed", "error": 'RuntimeError: "diverged", at step 3', "accuracy": None}


def row(**changed: Any) -> Row:
    metrics = {column.name: changed.pop(column.name, MEASURED.get(column.name)) for column in COLUMNS}
    return Row(**(PLAIN | changed), metrics=metrics)


def test_rows_come_back_as_they_were(tmp_path):
    rows = [row(), row(draw=3, per_class=[], reliability=[], chosen=""), row(**DEAD, n_labels=0, fingerprint="")]
    write_rows(tmp_path / "runs.csv", rows)
    assert read_rows(tmp_path / "runs.csv") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]  # no temporary file


def test_the_file_is_plain_csv_with_the_columns_in_order(tmp_path):
    write_rows(tmp_path / "runs.csv", [row(accuracy=np.float64(0.25))])
    with (tmp_path / "runs.csv").open(newline="") as file:
        header, line = csv.reader(file)
    names = [column.name for column in COLUMNS]
    assert header == [*list(PLAIN)[:9], *names, *list(PLAIN)[9:]]
    cells = dict(zip(header, line, strict=True))
    assert (cells["accuracy"], cells["raw_accuracy"], cells["per_class"]) == ("0.25", "", "[0.5, null, 1.0]")


def test_what_a_spreadsheet_would_run_is_text_in_the_file_and_comes_back(tmp_path):
    error = "=HYPERLINK(1)"
    failed = row(**(DEAD | {"error": error}))
    write_rows(tmp_path / "runs.csv", [failed])
    assert f",'{error}," in (tmp_path / "runs.csv").read_text()
    assert read_rows(tmp_path / "runs.csv") == [failed]


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("suite", sorted(path.parent.name for path in RESULTS.glob("*/runs.csv")))
def test_committed_runs_are_read_whatever_columns_they_have(suite):
    rows = read_rows(RESULTS / suite / "runs.csv")
    assert rows and all(row.status == "failed" or row.metrics["seconds"] is not None for row in rows)


def test_a_file_without_a_newer_column_is_read(tmp_path):
    """As version 0.1.0 wrote it: other order, and no balanced accuracy."""
    path = RESULTS.parents[1] / "tests" / "bench" / "runs_of_0.1.0.csv"
    assert "balanced_accuracy" not in path.read_text()
    first, second = read_rows(path)
    assert (first.entry, first.accuracy, first.metrics["steps"]) == ("supervised", 0.8022284122562674, 400)
    assert first.metrics["balanced_accuracy"] is None and second.status == "failed"
    write_rows(tmp_path / "runs.csv", [first, second])
    assert read_rows(tmp_path / "runs.csv") == [first, second]


def test_no_rows(tmp_path):
    write_rows(tmp_path / "runs.csv", [])
    assert read_rows(tmp_path / "runs.csv") == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"accuracy": math.nan}, r"accuracy must be a number in \[0, 1\], got nan"),
        ({"accuracy": 61.5}, r"accuracy must be a number in \[0, 1\], got 61.5"),
        ({"nll": math.inf}, "nll must be a number finite and >= 0, got inf"),
        ({"seconds": -1.0}, "seconds must be a number finite and >= 0, got -1.0"),
        ({"draw": 1.0}, "draw must be an integer from 0 to .*, got 1.0"),
        ({"draw": -1}, "draw must be an integer from 0 to .*, got -1"),
        ({"n_labels": 2**63}, "n_labels must be an integer from 0 to .*, got 9223372036854775808"),
        ({"entry": None}, "entry must be text of one line, got None"),
        ({**DEAD, "error": "a\nb"}, r"error must be text of one line, got 'a\\nb'"),
        ({"status": "running"}, "status must be done or failed, got 'running'"),
        ({"per_class": [0.5, math.nan]}, "per_class must hold numbers in .* got nan"),
        ({"per_class": None}, "per_class must be a list, got None"),
        ({"reliability": [[1.0, 0.5, 0.5]]}, "reliability must have 15 bins or none, got 1"),
        ({"reliability": [[10**400, 0.5, 0.5]] * 15}, r"reliability must hold .* got \[10000"),
        ({"per_class": [10**400]}, "per_class must hold numbers in .* got 10000"),
        ({"reliability": [[1.0, 0.5]] * 15}, r"reliability must hold \[count, confidence, accuracy\]"),
        ({"reliability": [[1.0, math.nan, 0.5]] * 15}, r"reliability must hold .* got \[1.0, nan, 0.5\]"),
        ({"status": "failed"}, "error must say why a run failed"),
        ({"error": "oops"}, "error must say why a run failed, and only then"),
        ({**DEAD, "accuracy": 0.5}, "accuracy must be None on a failed run, got 0.5"),
        ({"n_labels": 0}, "n_labels must be at least 1 on a finished run"),
    ],
)
def test_a_row_refuses(changed, message):
    with pytest.raises(SemisupError, match=message):
        row(**changed)


def test_a_row_names_itself_and_lists_every_problem():
    with pytest.raises(SemisupError, match=r"row of 'fixmatch', labels 4/class, draw 1, init 2: 2 problems") as caught:
        row(ece=math.nan, knn=-0.5)
    assert "ece must be" in str(caught.value)
    assert "knn must be" in str(caught.value)


def edited(tmp_path, old: str, new: str):
    path = tmp_path / "runs.csv"
    write_rows(path, [row(draw=0), row(**DEAD)])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kept_accuracy,", "kept_acuracy,", r"(?s)unknown column 'kept_acuracy'; did you mean 'kept_accuracy'"),
        ("entry,method", "entry,entry", r"(?s)column 'method' is missing.*column 'entry' is there twice"),
        ("12.25", "twelve", r"(?s)line 2, column seconds: not of type float \| None: 'twelve'.*line 3, column seconds"),
        ("12.25", "nan", "line 2, column seconds: must be a number finite and >= 0, got nan"),
        (",40,0,", ",40,0.0,", "line 2, column draw: not of type int: '0.0'"),
        ("[0.5, null, 1.0]", "[0.5, NaN, 1.0]", "line 2, column per_class: must hold numbers"),
        ("[0.5, null, 1.0]", "[0.5, null", "line 2, column per_class: not of type list"),
        (",done,", ",failed,", r"(?s)line 2: row of 'fixmatch'.*error must say why"),
        ("abc,def", "abc", r"line 2: \d+ columns, expected \d+"),
    ],
)
def test_reading_names_file_line_and_column(tmp_path, old, new, message):
    path = edited(tmp_path, old, new)
    with pytest.raises(SemisupError, match=message) as caught:
        read_rows(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(SemisupError, match=r"nowhere\.csv: no such file"):
        read_rows(tmp_path / "nowhere.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(SemisupError, match="column 'entry' is missing"):
        read_rows(tmp_path / "empty.csv")
    for name in ("runs.csv", "suite.json"):
        os.mkfifo(tmp_path / name)  # which nobody writes to: opening it would wait for ever
    with pytest.raises(SemisupError, match=r"runs\.csv: cannot be read \(a pipe or a device, not a file\)"):
        read_rows(tmp_path / "runs.csv")
    with pytest.raises(SemisupError, match=r"suite\.json: cannot be read \(a pipe or a device, not a file\)"):
        read_facts(tmp_path)
    (tmp_path / "image.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(SemisupError, match="not a readable CSV file"):
        read_rows(tmp_path / "image.csv")
