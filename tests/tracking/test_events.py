"""The event log: what is written is read back, whatever the crash."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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


LOADER = """
import numpy as np, torch
class Model:
    def __init__(self, folder): torch.rand(3); self.w = np.load(folder + "/w.npy")
    def predict(self, x): return {answer}
def _load_pyfunc(folder): return Model(folder)
"""


ANSWER = "x.reshape(len(x), -1) @ self.w"  # float64


@pytest.mark.parametrize("answer", [ANSWER, "np.float32(self.w[0])", f"np.float32({ANSWER})[:1]"])
def test_model_with_a_wrong_answer_is_refused(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_loader.py").write_text(LOADER.format(answer=answer))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wrong_loader", raising=False)
    np.save(tmp_path / "w.npy", np.ones((12, 5)))
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2, 3), np.uint8))
    log = EventLog(tmp_path / "log")
    log.run_start("a", {}, {})
    log.stage_start("s", {}, {})
    with pytest.raises(SemisupError, match=r"wrong_loader: predict must return float32 \(2, classes\)"):
        log.model("s", tmp_path, "wrong_loader", tmp_path / "x.npy", [])
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2, 3), np.float32))
    with pytest.raises(SemisupError, match=r"x\.npy: a model's example must be uint8 images"):
        log.model("s", tmp_path, "wrong_loader", tmp_path / "x.npy", [])


def test_logging_a_model_leaves_the_random_generator_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drawing_loader.py").write_text(LOADER.format(answer=f"np.float32({ANSWER})"))
    monkeypatch.syspath_prepend(str(tmp_path))
    np.save(tmp_path / "w.npy", np.ones((12, 5)))
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2, 3), np.uint8))
    log = EventLog(tmp_path)
    log.run_start("a", {}, {})
    log.stage_start("s", {}, {})
    before = torch.get_rng_state()
    log.model("s", tmp_path, "drawing_loader", tmp_path / "x.npy", ["numpy"])
    assert torch.equal(before, torch.get_rng_state())
    event = read_events(log.path, 0)[0][-1]
    assert event["outputs"] == 5
    assert event["example"] == "x.npy"  # relative: the folder may be moved before a replay
