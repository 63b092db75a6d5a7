"""The event log: what is written is read back, whatever the crash."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semisup.errors import SemisupError
from semisup.tracking.events import Event, EventLog, iter_events


def read_events(path: Path, offset: int) -> tuple[list[Event], int]:
    """The complete events from byte `offset` on, and the offset to go on from."""
    pairs = list(iter_events(path, offset))
    return [event for event, _ in pairs], pairs[-1][1] if pairs else offset


def kinds(path: Path) -> list[str]:
    return [event["event"] for event in read_events(path, 0)[0]]


def test_every_event_is_one_valid_json_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "new" / "folder")
    log.run_start("digits", {"data": {"labels": "10%"}, "path": Path("x")}, {"commit": None})
    log.stage_start("train", {}, {})
    log.metrics("train", 3, {"loss": math.nan, "up": math.inf, "down": -math.inf, "ok": 0.5})
    log.stage_end("train", "trained", {"test/accuracy": 0.9})
    log.run_end("finished")
    lines = log.path.read_text(encoding="utf-8").splitlines()

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    events = [json.loads(line, parse_constant=no_constants) for line in lines]
    assert [e["event"] for e in events] == ["run_start", "stage_start", "metrics", "stage_end", "run_end"]
    assert len({e["id"] for e in events}) == 5
    assert events == sorted(events, key=lambda e: e["time"])
    values = {key: float(value) for key, value in events[2]["values"].items()}
    assert math.isnan(values["loss"]) and values["up"] == math.inf and values["down"] == -math.inf
    assert values["ok"] == 0.5


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert read_events(log.path, 0) == ([], 0)
    log.run_start("a", {}, {})
    first, offset = read_events(log.path, 0)
    assert len(first) == 1
    log.run_end("finished")
    second, end = read_events(log.path, offset)
    assert [e["event"] for e in second] == ["run_end"]
    assert read_events(log.path, end) == ([], end)


def test_torn_last_line_is_ignored_then_cut_off(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.run_start("a", {}, {})
    whole = log.path.stat().st_size
    with log.path.open("ab") as file:
        file.write(b'{"event": "metrics", "st')
    events, offset = read_events(log.path, 0)
    assert len(events) == 1 and offset == whole
    log = EventLog(tmp_path)
    assert log.path.stat().st_size == whole
    log.run_start("b", {}, {})
    assert kinds(log.path) == ["run_start", "run_start"]


def test_damaged_line_is_named(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.run_start("a", {}, {})
    position = log.path.stat().st_size
    with log.path.open("ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(SemisupError, match=rf"events\.jsonl: the line at byte {position} is not an event"):
        read_events(log.path, 0)


def test_nothing_is_lost_by_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from semisup.tracking.events import EventLog\n"
        "log = EventLog(Path(sys.argv[1])); log.run_start('a', {}, {}); log.stage_start('s', {}, {})\n"
        "for step in range(10**9):\n"
        "    log.metrics('s', step, {'loss': 0.0}); print(step, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [int(process.stdout.readline()) for _ in range(50)]
        os.kill(process.pid, signal.SIGKILL)
        seen += [int(line) for line in process.stdout.read().splitlines()]
    steps = [e["step"] for e in read_events(tmp_path / "events.jsonl", 0)[0] if e["event"] == "metrics"]
    assert steps[: len(seen)] == seen and len(steps) <= len(seen) + 1


def test_unstarted_stages_and_outside_paths_are_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.run_start("a", {}, {})
    with pytest.raises(ValueError, match="'train' has not been started"):
        log.metrics("train", 0, {"loss": 1.0})
    log.stage_start("train", {}, {})
    log.run_start("b", {}, {})
    with pytest.raises(ValueError, match="'train' has not been started"):
        log.stage_end("train", "trained", {})
    for outside in ("/etc", "../x", "a/../../x"):
        with pytest.raises(ValueError, match="must stay within"):
            log.artifact(None, log.path, outside)


@pytest.mark.parametrize(
    "change",
    [
        {"event": "greeting"},
        {"event": None},
        {"id": "x' OR 1=1"},
        {"id": 3},
        {"time": "soon"},
        {"time": 1e300},
        {"stage": 3},
        {"step": -1},
        {"step": 10**30},
        {"step": None},
        {"values": [1]},
        {"values": {"loss": "much"}},
        {"values": {"loss": None}},
    ],
)
def test_json_that_is_no_event_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.run_start("a", {}, {})
    log.metrics(None, 0, {"loss": 1.0})
    lines = log.path.read_text().splitlines(keepends=True)
    damaged = json.dumps(json.loads(lines[1]) | change) + "\n"
    log.path.write_text(lines[0] + damaged)
    with pytest.raises(SemisupError, match=rf"the line at byte {len(lines[0])} is not an event"):
        read_events(log.path, 0)


@pytest.mark.parametrize("line", ["3", "null", "[]", '"text"', "{}", "[" * 5000, "1e999", '{"event": "metrics"}'])
def test_any_other_json_is_no_event(line: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(line + "\n")
    with pytest.raises(SemisupError, match=r"the line at byte 0 is not an event: .*; take that line out, or move"):
        read_events(tmp_path / "events.jsonl", 0)


def test_only_what_lies_in_the_folder_is_recorded(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "run")
    log.run_start("a", {}, {})
    log.stage_start("s", {}, {})
    (tmp_path / "run" / "s").mkdir()
    with pytest.raises(ValueError, match="only what lies in"):
        log.artifact(None, tmp_path / "secret", "")
    with pytest.raises(ValueError, match="only what lies in"):
        log.model("s", tmp_path / "run" / "s", tmp_path / "x.npy", 5)
    log.model("s", tmp_path / "run" / "s", tmp_path / "run" / "s" / "x.npy", 5)
    event = read_events(log.path, 0)[0][-1]
    assert (event["path"], event["example"], event["outputs"]) == ("s", "s/x.npy", 5)


def test_every_log_signs_its_events(tmp_path: Path) -> None:
    for _ in range(2):
        log = EventLog(tmp_path)
        log.run_start("a", {}, {})
        log.run_end("finished")
    writers = [event["writer"] for event in read_events(tmp_path / "events.jsonl", 0)[0]]
    assert writers[0] == writers[1] != writers[2] == writers[3]
