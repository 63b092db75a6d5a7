"""The benchmark of kept memory, on a step of a few images."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import kept_memory
import pytest
from throughput import WRN_10_1, Case

from semisup.engine import keep_memory

LARGE_BATCH = "stages.train.batch={labeled: 16, unlabeled: 800}"  # maps of 41 MB, which glibc never keeps by itself
CASE = Case("short", "fashion_mnist/fixmatch", "train", (28, 1, 1000), (WRN_10_1, LARGE_BATCH), block=3)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of keeping memory")
def test_a_process_that_keeps_memory_asks_for_none_anew() -> None:
    spawn = multiprocessing.get_context("spawn")
    pages = []
    for initializer in (None, keep_memory):
        with ProcessPoolExecutor(1, spawn, initializer) as process:
            process.submit(kept_memory.begin, CASE).result()
            seconds, cleared = process.submit(kept_memory.measure, CASE.block).result()
            assert seconds > 0
            pages.append(cleared)
    as_it_comes, kept = pages
    assert kept < as_it_comes / 10
