"""Step times are measured where they are needed, kept with the machine's load, and measured again if that was high."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from semisup.bench.execution.jobs import plan_run
from semisup.bench.execution.progress import BenchConsole
from semisup.bench.execution.scheduler import JobBoard
from semisup.bench.execution.steptimes import STEP_TIMES, step_times
from semisup.bench.suites.runs import expand
from semisup.bench.suites.suite import Suite
from semisup.data import load_data
from semisup.pipeline.timing import is_busy
from tests.bench.bench_small import small


def times(folder: Path) -> dict[str, Any]:
    """Kind -> kept record, of the one device."""
    (found,) = json.loads((folder / STEP_TIMES).read_text(encoding="utf-8")).values()
    return dict(found)


def timed(suite: Suite, folder: Path, *, expected: bool = True) -> dict[str, float]:
    """The step times of a suite's runs, measured in this process; as by a dry run unless told otherwise."""
    data = load_data(suite.data)
    planned = [plan_run(suite, spec, data) for spec in expand(suite)]
    board = JobBoard(folder / "stages", ships=False)
    console = BenchConsole(quiet=True)
    return step_times(suite, folder, planned, board, console, lambda f, *given: f(*given), {}, expected=expected)


def long_enough(*overrides: str) -> Suite:
    return small("draws=1", "labels=[20]", "defaults.steps=300", *overrides, only=("supervised",))


def test_what_is_short_is_not_timed_unless_lengths_are_in_seconds(tmp_path: Path) -> None:
    short = ("draws=1", "labels=[20]")
    assert timed(small(*short, only=("supervised",)), tmp_path) == {} and not (tmp_path / STEP_TIMES).exists()
    assert len(timed(small(*short, "compute=[3 s]", only=("supervised", "logistic")), tmp_path)) == 1


def test_where_nothing_needs_step_times_none_is_measured(tmp_path: Path) -> None:
    """A run by steps: no key is in seconds, and nobody waits for the expected time. What a dry run kept is used."""
    assert timed(long_enough(), tmp_path, expected=False) == {} and not (tmp_path / STEP_TIMES).exists()
    assert len(timed(long_enough("compute=[3 s]"), tmp_path / "seconds", expected=False)) == 1
    kept = timed(long_enough(), tmp_path, expected=True)
    assert len(kept) == 1 and timed(long_enough(), tmp_path, expected=False) == kept


def test_a_busy_machine_is_timed_again_and_a_quiet_one_is_not(tmp_path: Path) -> None:
    assert len(timed(long_enough(), tmp_path)) == 1
    ((kind, first),) = times(tmp_path).items()
    assert first["load"] >= 0 and first["seconds"] > 0
    device = next(iter(json.loads((tmp_path / STEP_TIMES).read_text())))

    def kept(load: float, *overrides: str) -> bool:
        (tmp_path / STEP_TIMES).write_text(json.dumps({device: {kind: first | {"seconds": 123.0, "load": load}}}))
        return timed(long_enough(*overrides), tmp_path) == {kind: 123.0}

    assert kept(0.0)
    assert not kept(1000.0)
    (tmp_path / "runs.csv").touch()
    assert kept(1000.0, "compute=[3 s]"), "equal seconds are not changed once a run was made with them"


SECONDS = ("1e-320", "1e300", "1" + 400 * "0", "NaN", "true")
DAMAGED = ["", "{", "[]", '{"cpu": {"kind": {"seconds": "fast"}}}', '{"cpu": {"kind": 3}}', "\xff"]
DAMAGED += [f'{{"cpu": {{"kind": {{"seconds": {seconds}}}}}}}' for seconds in SECONDS]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_told_and_measured_anew(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / STEP_TIMES).write_bytes(text.encode("latin-1"))
    assert timed(small("draws=1", "labels=[20]", only=("supervised",)), tmp_path) == {}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if STEP_TIMES in line]
    assert "warning" in line and "measured anew" in line


def test_busy_is_when_too_few_cores_are_left() -> None:
    import psutil

    cores = psutil.cpu_count() or 1
    assert not is_busy(0.0, 1) and not is_busy(cores - 1.0, 1)
    assert is_busy(cores, 1) and is_busy(0.5, cores)
