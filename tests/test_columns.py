"""A metric costs one line: added to a copy of the package, it is in every file and table."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import semisup
from semisup.columns import COLUMNS, measured

LINE = '    Column("top_two", "test/top_two", "best of two", "among the two likeliest", "percent", UP),\n'
USE = """
import json, sys
from pathlib import Path
from semisup.bench.results.rows import read_rows, write_rows
from semisup.bench.pages.leaderboard import leaderboard_markdown
from semisup.bench.pages.report import report_html
from semisup.columns import measured
from semisup.pipeline.console import Reporter
from semisup.pipeline.result import RunResult, StageResult
from tests.bench.bench_rows import row, summary

found = measured({"test/top_two": 0.777, "test/accuracy": 0.5})
write_rows(Path("runs.csv"), [row("supervised", **found)])
made = summary(read_rows(Path("runs.csv")))
metrics = {"test/top_two": 0.777, "test/accuracy": 0.5}
stage = StageResult("train", "supervised", "f", "trained", 1, 1.0, 1.0, 1, metrics)
Reporter().show_result(RunResult("r", 0, "0", "cpu", {}, [stage]))
print("\\f".join([Path("runs.csv").read_text(), json.dumps(made), leaderboard_markdown(made), report_html(made)]))
"""


def test_a_metric_costs_one_line(tmp_path: Path) -> None:
    package = Path(semisup.__file__).parent
    shutil.copytree(package, tmp_path / "semisup")
    shutil.copytree(package.parent / "tests" / "bench", tmp_path / "tests" / "bench")
    path = tmp_path / "semisup" / "columns.py"
    text = path.read_text(encoding="utf-8")
    assert text.count("COLUMNS = (\n") == 1
    path.write_text(text.replace("COLUMNS = (\n", f"COLUMNS = (\n{LINE}"), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=True)
    table_and_rows, as_json, markdown, html = done.stdout.split("\f")
    table, rows = table_and_rows.split("entry,method", 1)
    assert "best of two" in table and "77.7" in table, "the table of semisup run"
    assert ",top_two," in rows and ",0.777," in rows
    assert '"top_two": {"mean": 0.777' in as_json
    assert all("best of two" in page and "77.7" in page for page in (markdown, html))
    assert "among the two likeliest" in markdown and "among the two likeliest" in html


def test_columns_have_names_and_keys_of_their_own() -> None:
    for field in ("name", "key", "title"):
        assert len({getattr(column, field) for column in COLUMNS}) == len(COLUMNS)


def test_what_is_no_finite_number_was_not_measured() -> None:
    nothing = {"test/accuracy": None, "test/nll": float("nan"), "test/ece": True, "test/brier": [1.0]}
    assert set(measured(nothing).values()) == {None}
    assert measured({"test/accuracy": 1})["accuracy"] == 1
