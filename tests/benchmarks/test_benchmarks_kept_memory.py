"""The benchmark of kept memory, on a step of a few images."""

from __future__ import annotations

import multiprocessing
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import kept_memory
import pytest
from throughput import WRN_10_1, Case

from semisup.engine import keep_memory

LARGE_BATCH = "stages.train.batch={labeled: 16, unlabeled: 800}"  # maps of 41 MB, which glibc never keeps by itself
CASE = Case("short", "fashion_mnist/fixmatch", "train", (28, 1, 1000), (WRN_10_1, LARGE_BATCH), block=3)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of keeping memory")
def test_of_two_processes_one_keeps_the_memory_of_its_steps() -> None:
    """By resident memory after a step over its peak: how many pages a system clears at once is its own affair."""
    spawn = multiprocessing.get_context("spawn")
    shares = []
    for initializer in (None, keep_memory):
        with ProcessPoolExecutor(1, spawn, initializer) as process:
            process.submit(kept_memory.begin, CASE).result()
            seconds, cleared = process.submit(kept_memory.measure, CASE.block).result()
            assert seconds > 0
            assert cleared >= 0
            status = process.submit(Path("/proc/self/status").read_text).result()
            peak, resident = (int(re.findall(rf"{key}:\s+(\d+) kB", status)[0]) for key in ("VmHWM", "VmRSS"))
            shares.append(resident / peak)
    as_it_comes, kept = shares
    assert as_it_comes < 0.85
    assert kept > 0.95
