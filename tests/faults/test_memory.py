"""A long training, and a suite of many runs, take no more memory at their end than soon after their beginning."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from tests.faults.faults_process import events, write_recipe
from tests.nursery import Nursery

STEPS, BEGIN = 5000, 500
"""Steps of a training, and the first of them that counts: memory grows while everything is used for the first time."""
MEBIBYTES = 4.0
"""That the line through the measurements may rise by: a tensor of 1 KiB kept at each step is 4.4."""
MEBIBYTES_OF_RUNS = 8.0
"""The same of the runs of a suite: 45 KiB that a run leaves behind. The command keeps what its tables say of each."""


def memory_by_step(nursery: Nursery, folder: Path, stage: str) -> list[tuple[int, float]]:
    """Train one stage in a process of its own; returns pairs of step and resident memory, MiB."""
    write_recipe(folder, stage)
    alone = ("stages.match.init=null",) if stage == "match" else ()
    wanted = (f"stages.{stage}.steps={STEPS}", "log_every=50", "checkpoint_seconds=5")
    child = nursery.start(folder, "run", "recipe.yaml", "--out", "out", *wanted, *alone)
    process, found = psutil.Process(child.pid), list[tuple[int, float]]()
    while child.alive():
        steps = [event["step"] for event in events(folder / "out", "metrics")]
        if steps and (not found or steps[-1] > found[-1][0]):
            found.append((steps[-1], process.memory_info().rss / 2**20))
        time.sleep(0.05)
    assert child.wait() == 0, child.log.read_text()
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["train", "match", "contrast", "queue", "vat", "mix", "meta"])
def test_memory_stays_as_it_is(stage: str, nursery: Nursery, tmp_path: Path) -> None:
    found = memory_by_step(nursery, tmp_path, stage)
    steps, memory = np.array([pair for pair in found if BEGIN <= pair[0] < STEPS]).T
    assert len(steps) > 20, "too few measurements"
    slope = float(np.polyfit(steps, memory, 1)[0])
    grown = slope * (STEPS - BEGIN)
    print(f"memory of {stage}: {grown:+.2f} MiB in {STEPS - BEGIN} steps, {len(steps)} measurements, {memory[-1]:.0f}")
    assert grown <= MEBIBYTES


RUNS, WARM = 200, 20
"""Runs of a suite, and the first of them that counts."""
SUITE = {
    "name": "many",
    "data": {"source": "digits"},
    "model": {"name": "cnn", "width": 2},
    "labels": [20],
    "draws": RUNS // 2,
    "baseline": "supervised",
    "defaults": {"batch": {"labeled": 8, "unlabeled": 8}, "steps": 2},
    "tracking": {"mlflow": False},
    "entries": {
        "supervised": {"train": {"method": {"name": "supervised"}}},
        "fixmatch": {"train": {"method": {"name": "fixmatch"}}},
    },
}


def memory_by_run(nursery: Nursery, folder: Path) -> Mapping[str, list[tuple[int, float]]]:
    """Run the suite on one worker; returns for the command and for all its processes: finished runs and memory, MiB."""
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    child = nursery.start(folder, "bench", "suite.yaml", "--out", "out/many", "--workers", "1")
    command, found = psutil.Process(child.pid), {"command": [(0, 0.0)], "all": [(0, 0.0)]}
    while child.alive():
        finished = len(list(folder.glob("out/.semisup/stages/*/stage.json")))
        if finished > found["all"][-1][0]:
            own = command.memory_info().rss
            others = sum(_resident(process) for process in command.children(recursive=True))
            found["command"].append((finished, own / 2**20))
            found["all"].append((finished, (own + others) / 2**20))
        time.sleep(0.05)
    assert child.wait() == 0, child.log.read_text()
    return found


def _resident(process: psutil.Process) -> int:
    """Bytes of a process, 0 of one that has just ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_bench_of_many_runs_takes_no_more_memory_at_its_end(nursery: Nursery, tmp_path: Path) -> None:
    for name, pairs in memory_by_run(nursery, tmp_path).items():
        runs, memory = np.array([pair for pair in pairs if WARM <= pair[0] < RUNS]).T
        assert len(runs) > 100, "too few measurements"
        grown = float(np.polyfit(runs, memory, 1)[0]) * (RUNS - WARM)
        print(f"memory of {name}: {grown:+.2f} MiB in {RUNS - WARM} runs, {len(runs)} measurements, {memory[-1]:.0f}")
        assert grown <= MEBIBYTES_OF_RUNS
