"""`kill -9` of each method at random moments: weights, metrics and MLflow's history are as if undisturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from semisup.config import load_recipe
from semisup.methods import METHODS
from semisup.pipeline.plan import needed_stages
from semisup.stages.artifact import RECORD
from semisup.stages.training import CHECKPOINT
from tests.faults.faults_process import ALONE, DIGITS, STAGES, events, homes, tensors, timeless, write_recipe
from tests.nursery import Nursery

KILLS = int(os.environ.get("KILLS", "3"))
"""Of each method."""
RUN = ("run", "recipe.yaml", "--out", "out", "tracking.mlflow=true")
CHAINS = {
    stage["method"]["name"]: name
    for name, stage in (ALONE | STAGES).items()
    if "method" in stage and name != "finetune"  # supervised once, without a past
}
"""Method -> the stage that trains it."""
History = dict[int, dict[str, float]]
"""Step -> what was measured there."""

MAKE = """
from pathlib import Path
from semisup.tracking.database import database_uri, open_database

path = Path("mlflow.db").absolute()
open_database(path, database_uri(path))
"""


@pytest.fixture(scope="session")
def database(forks: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's: making one takes as long as three runs."""
    folder = tmp_path_factory.mktemp("database")
    code, output = forks.run(folder, code=MAKE)
    assert code == 0, output
    return folder / "mlflow.db"


def test_each_method_has_a_stage_here() -> None:
    assert CHAINS.keys() == METHODS.keys()


def united(histories: Iterable[list[tuple[int, dict[str, float]]]]) -> History:
    """What the sittings of a run have measured; none has a step twice, and where two have one they agree."""
    found: History = defaultdict(dict)
    for history in histories:
        steps = [step for step, _ in history]
        assert steps == sorted(set(steps)), f"steps {steps}"
        for step, values in history:
            for key, value in values.items():
                assert found[step].setdefault(key, value) == value, f"{key} at step {step}"
    return dict(found)


def logged(out: Path, stage: str) -> History:
    """The metrics of a stage in the log of events, one sitting a process."""
    sittings: dict[str, list[tuple[int, dict[str, float]]]] = defaultdict(list)
    for event in events(out, "metrics"):
        if event["stage"] == stage:
            sittings[event["writer"]].append((event["step"], event["values"]))
    return united(sittings.values())


def tracked(out: Path, stage: str) -> History:
    """The metrics of a stage in MLflow, whose runs are those of the log; all but the last were killed."""
    cursor = json.loads((out / "mlflow.json").read_text())
    assert cursor["offset"] == (out / "events.jsonl").stat().st_size and cursor["open"] == []
    with closing(sqlite3.connect(out.parent / "mlflow.db")) as connection:
        wanted = "SELECT run_uuid, status FROM runs WHERE name = ? ORDER BY start_time, rowid"
        runs, parents = (connection.execute(wanted, (name,)).fetchall() for name in (stage, "faults"))
        rows = connection.execute("SELECT run_uuid, key, step, value, is_nan FROM metrics").fetchall()
    assert len(runs) == sum(event["stage"] == stage for event in events(out, "stage_start"))
    assert len(parents) == len(events(out, "run_start"))
    for statuses in ([status for _, status in runs], [status for _, status in parents]):
        assert statuses[-1] == "FINISHED" and set(statuses[:-1]) <= {"KILLED", "FINISHED"}
    histories = []
    for run, _ in runs:
        own = [row[1:] for row in rows if row[0] == run]
        assert len({row[:2] for row in own}) == len(own), "a step twice"
        by_step: History = defaultdict(dict)
        for key, step, value, is_nan in own:
            by_step[step][key] = float("inf") if is_nan else value  # unlike NaN, equal to itself
        histories.append(sorted(by_step.items()))
    return united(histories)


def assert_same(out: Path, reference: Path, stage: str) -> None:
    """Two finished runs have the same bytes, numbers and histories."""
    mine, theirs = tensors(out), tensors(reference)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert timeless(out / "result.json") == timeless(reference / "result.json")
    assert logged(out, stage) == logged(reference, stage)
    assert tracked(out, stage) == tracked(reference, stage)


def write(folder: Path, method: str, *, past: bool = False) -> bool:
    """Write the recipe of a method's stage and those that it needs; `past`: of these alone; whether there are any."""
    name, data = CHAINS[method], DIGITS
    if method == "colorization":
        images = np.random.default_rng(0).integers(0, 256, (240, 8, 8, 3), dtype=np.uint8)
        y = np.arange(120) % 4
        np.savez(folder / "color.npz", x_train=images[:120], y_train=y, x_test=images[120:], y_test=y)
        data = {"source": "npz", "path": "color.npz", "labels": "10/class"}
    write_recipe(folder, *(STAGES if name in STAGES else [name]), data=data)
    needed = list(needed_stages(load_recipe(folder / "recipe.yaml").stages, name))
    wanted = needed[:-1] if past else needed
    if wanted:
        write_recipe(folder, *wanted, data=data)
    return bool(wanted)


def begin(folder: Path, past: Path, database: Path, method: str) -> None:
    """Make a folder in which nothing but the stages that a method needs has been run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write(folder, method)
    shutil.copy(database, folder / "mlflow.db")
    if (past / ".semisup").exists():
        shutil.copytree(past / ".semisup", folder / ".semisup")


@dataclass
class Killer:
    """Starts a command and kills it at a random moment: of its life or, every other time, of a stage's training."""

    nursery: Nursery
    folder: Path
    home: Path
    """Of the stage."""
    life: float
    """Seconds of the whole command, undisturbed."""
    training: float
    """Seconds of the training alone."""
    draws: random.Random
    turn: int = 0

    def strike(self) -> str | None:
        """Return when the command was killed, before, in or after its training; None: it had ended before."""
        self.turn += 1
        log = self.folder / "out" / "events.jsonl"
        begun = self.starts(log)
        child = self.nursery.start(self.folder, *RUN)
        if self.turn % 2:
            time.sleep(self.draws.uniform(0, self.life))
        else:
            child.wait_for("the stage to begin", lambda: self.starts(log) > begun)
            time.sleep(self.draws.uniform(0, self.training))
        child.kill()
        if (code := child.wait()) == 0:
            return None
        assert code == -signal.SIGKILL, child.log.read_text()
        return "after" if (self.home / RECORD).exists() else "in" if (self.home / CHECKPOINT).exists() else "before"

    def starts(self, log: Path) -> int:
        """How often the stage has begun."""
        lines = log.read_text().splitlines() if log.exists() else []
        return sum('"stage_start"' in line and self.home.name in line for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", CHAINS)
def test_kills_change_nothing(method: str, nursery: Nursery, database: Path, tmp_path: Path) -> None:
    """Each process goes on where the one before was killed, until the training is over and all is compared."""
    stage = CHAINS[method]
    past, whole, killed = (tmp_path / name for name in ("past", "whole", "killed"))
    past.mkdir()
    if write(past, method, past=True):
        code, output = nursery.run(past, *RUN, "tracking.mlflow=false")
        assert code == 0, output
    begin(whole, past, database, method)
    started = time.monotonic()
    code, output = nursery.run(whole, *RUN)
    assert code == 0, output
    life = time.monotonic() - started
    begin(killed, past, database, method)
    home = killed / ".semisup" / "stages" / homes(whole / "out")[stage].name
    seconds = json.loads((whole / "out" / stage / RECORD).read_text())["seconds"]
    killer, when = Killer(nursery, killed, home, life, seconds, random.Random(method)), Counter[str]()
    while when.total() < KILLS:
        moment = killer.strike()
        when.update([moment] if moment is not None else [])
        if moment in ("before", "in") and when.total() < KILLS:
            continue
        if moment is not None:
            code, output = nursery.run(killed, *RUN)
            assert code == 0, output
        assert_same(killed / "out", whole / "out", stage)
        begin(killed, past, database, method)
    print(f"kills of {method}: " + ", ".join(f"{count} {moment} training" for moment, count in when.items()))
