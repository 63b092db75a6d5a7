"""A suite killed at any moment goes on where it was, and says what an undisturbed one says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from semisup.bench.execution.jobs import make_jobs, plan_run
from semisup.bench.execution.worker import Pack, run_job
from semisup.bench.results.rows import read_rows
from semisup.bench.suites.runs import expand
from semisup.bench.suites.suite import parse_suite
from semisup.data import load_data

SEMISUP = Path(sys.executable).with_name("semisup")
SUITE = {
    "name": "killed",
    "data": {"source": "digits"},
    "model": {"name": "cnn", "width": 4},
    "labels": [20, 40],
    "draws": 2,
    "baseline": "supervised",
    "defaults": {"batch": {"labeled": 16, "unlabeled": 16}, "ema": 0.5, "steps": 120},
    "tracking": {"mlflow": False},
    "entries": {
        "supervised": {"train": {"method": {"name": "supervised"}}},
        "fixmatch": {"train": {"method": {"name": "fixmatch"}}},
    },
}


def start(folder: Path, *overrides: str, workers: int = 2) -> subprocess.Popen[bytes]:
    """The command, in a session of its own, so that nothing but itself is killed with it."""
    folder.mkdir(exist_ok=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    words = [SEMISUP, "bench", folder / "suite.yaml", *overrides, "--out", folder / "out" / "killed"]
    words += ["--workers", str(workers)]
    # A shell starts background jobs with SIGINT ignored, and they hand that on: a person's terminal does not.
    return subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(folder: Path) -> dict[str, int]:
    """Fingerprint -> when the stage was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("out/.semisup/stages/*/stage.json")}


def alive(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def left_behind(session: int) -> list[str]:
    """What still runs of a session whose command has ended, after the moment that multiprocessing's own helper needs.

    That helper ends by itself once it notices that nobody holds its pipe. A worker that was left would train for hours.
    """
    deadline = time.monotonic() + 60
    while alive(session) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in alive(session)]


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    command = start(tmp_path)
    deadline = time.monotonic() + 240
    while len(finished(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    before = finished(tmp_path)
    assert 3 <= len(before) < 8, "killed in the middle"
    assert left_behind(command.pid) == [], "workers end with the command that started them"

    assert start(tmp_path).wait(600) == 0
    after = finished(tmp_path)
    assert len(after) == 8 and before.items() <= after.items(), "nothing that was finished is run again"
    disturbed = {
        row.fingerprint: (row.accuracy, row.metrics["nll"]) for row in read_rows(tmp_path / "out/killed/runs.csv")
    }
    assert disturbed == undisturbed(tmp_path / "undisturbed")


def undisturbed(store: Path) -> dict[str, tuple[float, float]]:
    """Fingerprint -> test accuracy and NLL of every run of the suite, one after the other in this process."""
    suite, found = parse_suite(SUITE), {}
    data = load_data(suite.data)
    for spec in expand(suite):
        (job,) = make_jobs(suite, plan_run(suite, spec, data), {})
        done = run_job(job, {}, str(store))
        assert isinstance(done, Pack)
        found[job.fingerprint] = (done.record["metrics"]["test/accuracy"], done.record["metrics"]["test/nll"])
    return found


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [pytest.param(signal.SIGINT, 130, 2, marks=pytest.mark.slow), (signal.SIGTERM, 143, 1)],  # each costs seconds
)
def test_a_signal_writes_the_tables_of_what_is_finished(number: int, code: int, workers: int, tmp_path: Path) -> None:
    # The first entry cannot be over in time, the second soon is.
    command = start(tmp_path, "entries.supervised.train.steps=1000000", "defaults.steps=20", workers=workers)
    deadline = time.monotonic() + 240
    while len(finished(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(command.pid, number)  # as a terminal and SLURM do: to the workers too
    assert command.wait(240) == code
    assert left_behind(command.pid) == [], "no worker outlives the command"
    rows = read_rows(tmp_path / "out" / "killed" / "runs.csv")
    assert 2 <= len(rows) <= 4 and {row.status for row in rows} == {"done"}
    unfinished = list(tmp_path.glob("out/.semisup/stages/*/checkpoint.pt"))
    assert unfinished, "the workers have kept what they were at"
