"""A long training, or suite, takes no more memory at its end than soon after its beginning."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from semisup.bench.execution.cluster import MALLOC
from tests.faults.faults_process import events, write_recipe
from tests.nursery import Child, Nursery

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


def growth(child: Child, done: Callable[[], int], begin: int, end: int) -> float:
    """Watch a process to its end; return the MiB that the line through its memory rises by.

    Args:
        child: the process.
        done: how many steps, or runs, it has made.
        begin: the first of them that counts.
        end: the last one's successor.
    """
    process, found = psutil.Process(child.pid), list[tuple[int, float]]()
    while child.alive():
        count = done()
        if count > (found[-1][0] if found else 0):
            found.append((count, process.memory_info().rss / 2**20))
        time.sleep(0.05)
    assert child.wait() == 0, child.log.read_text()
    counts, memory = np.array([pair for pair in found if begin <= pair[0] < end]).T
    assert len(counts) > 20, "too few measurements"
    grown = float(np.polyfit(counts, memory, 1)[0]) * (end - begin)
    print(f"memory: {grown:+.2f} MiB from {begin} to {end}, {len(counts)} measurements, {memory[-1]:.0f}")
    return grown


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["train", "match", "contrast", "queue", "vat", "mix", "meta"])
def test_memory_stays_as_it_is(stage: str, nursery: Nursery, tmp_path: Path) -> None:
    write_recipe(tmp_path, stage)
    alone = ("stages.match.init=null",) if stage == "match" else ()
    wanted = (f"stages.{stage}.steps={STEPS}", "log_every=50", "checkpoint_seconds=5")
    child = nursery.start(tmp_path, "run", "recipe.yaml", "--out", "out", *wanted, *alone)

    def steps() -> int:
        return max((event["step"] for event in events(tmp_path / "out", "metrics")), default=0)

    assert growth(child, steps, BEGIN, STEPS) <= MEBIBYTES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_suite_of_200_runs_keeps_little_of_each(nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    wanted = (f"draws={RUNS}", "--out", "out", "--workers", "2")
    child = nursery.start(tmp_path, "bench", "suite.yaml", *wanted)

    def runs() -> int:
        """Those that are over, from when the tables were written once: scipy's statistics are first used there."""
        written = (tmp_path / "out" / "leaderboard.md").exists()
        return len(events(tmp_path / "out", "stage_end")) if written else 0

    assert growth(child, runs, FIRST, RUNS) <= SUITE_MEBIBYTES


SEARCH = """
import resource, torch
from semisup.graph import nearest

torch.set_num_threads(1)
features = torch.randn(8192, 8, generator=torch.Generator().manual_seed(0))
nearest(features[:2048], 50)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest(features, 50)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_search_of_neighbors_needs_one_block_where_memory_is_kept() -> None:
    environment = os.environ | {name: str(value) for name, value in MALLOC.items()}
    done = subprocess.run([sys.executable, "-c", SEARCH], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2 * 32, "MiB: a block is 32; one for each part of the images were 256"
