"""A full disk below MLflow's database: the training goes on, one sentence says why, and the same command sends all."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.faults_process import tensors, write_recipe
from tests.faults.test_disk import in_memory, mount
from tests.nursery import Nursery

RUN = ("run", "recipe.yaml", "--out", "out", "tracking.mlflow=true")
FULL = ("database or disk is full", "No space left on device", "disk I/O error")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, for the database and what lies next to it."""
    with in_memory(tmp_path / "disk", "size=1m") as place:
        yield place


@pytest.mark.slow
def test_a_full_disk_below_the_database(disk: Path, nursery: Nursery, single: Path, tmp_path: Path) -> None:
    """While the database is made, while the run's records go in, and while files are copied next to it."""
    write_recipe(tmp_path, "train")
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{disk}/mlflow.db"}
    full = 0
    for size in (200, 1000, 1216, 1280):
        for name in ("out", ".semisup"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        for left in disk.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        assert mount("-o", f"remount,size={size}k", str(disk))
        code, output = nursery.run(tmp_path, *RUN, environment=uri)
        assert code == 0 and "Traceback" not in output, output
        told = [line for line in output.splitlines() if any(words in line for words in FULL)]
        assert len(told) <= 1, output
        full += len(told)
        assert tensors(tmp_path / "out") == tensors(single / "out")
        assert mount("-o", "remount,size=64m", str(disk))
        code, output = nursery.run(tmp_path, *RUN, environment=uri)
        assert code == 0 and not any(words in output for words in FULL), output
        assert_all_sent(tmp_path / "out", disk / "mlflow.db")
    assert full >= 3, "the disk was never full"


def assert_all_sent(out: Path, database: Path) -> None:
    cursor = json.loads((out / "mlflow.json").read_text())
    assert cursor["offset"] == (out / "events.jsonl").stat().st_size and cursor["open"] == []
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        runs = connection.execute("SELECT name, status FROM runs").fetchall()
        (losses,) = connection.execute("SELECT COUNT(*) FROM metrics WHERE key LIKE 'loss%'").fetchone()
    assert sorted(runs) == [("faults", "FINISHED")] * 2 + [("train", "FINISHED")] * 2 and losses > 0
