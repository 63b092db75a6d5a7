"""A long training, or suite, takes no more memory at its end than soon after its beginning."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.faults.faults_process import events, write_recipe
from tests.nursery import Nursery

STEPS, BEGIN = 5000, 500
"""Steps of a training, and the first of them that counts: memory grows while everything is used for the first time."""
MEBIBYTES = 4.0
"""That the line through the measurements may rise by: a tensor of 1 KiB kept at each step is 4.4."""
RUNS, FIRST = 200, 30
"""Of a suite, and the first of them that counts."""
SUITE_MEBIBYTES = 8.0
"""Likewise: what a run has measured is kept for the tables, about 15 KiB; 64 KiB kept of each run are 10.6."""
SUITE = """
name: many
data: {source: digits}
model: {name: cnn, width: 4}
labels: [40]
tracking: {mlflow: false}
entries:
  supervised: {train: {method: {name: supervised}, steps: 2, batch: {labeled: 16}}}
"""


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_suite_of_200_runs_keeps_little_of_each(nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    wanted = (f"draws={RUNS}", "--out", "out", "--workers", "2")
    child = nursery.start(tmp_path, "bench", "suite.yaml", *wanted)
    process, found = psutil.Process(child.pid), list[tuple[int, float]]()
    while child.alive():
        over = len(events(tmp_path / "out", "stage_end"))
        if over and (not found or over > found[-1][0]):
            found.append((over, process.memory_info().rss / 2**20))
        time.sleep(0.2)
    assert child.wait() == 0, child.log.read_text()
    runs, memory = np.array([pair for pair in found if FIRST <= pair[0] < RUNS]).T
    assert len(runs) > 20, "too few measurements"
    grown = float(np.polyfit(runs, memory, 1)[0]) * (RUNS - FIRST)
    print(f"memory of a suite: {grown:+.2f} MiB in {RUNS - FIRST} runs, {len(runs)} measurements, {memory[-1]:.0f}")
    assert grown <= SUITE_MEBIBYTES
