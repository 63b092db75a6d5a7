"""The benchmark of kept memory, on a step of a few images."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import kept_memory
import psutil
import pytest
import torch
from throughput import WRN_10_1, Case

from semisup.engine import keep_memory

SMALL_BATCH = "stages.train.batch={labeled: 4, unlabeled: 12}"
CASE = Case("short", "fashion_mnist/fixmatch", "train", (28, 1, 1000), (WRN_10_1, SMALL_BATCH), block=3)


def given_back() -> float:
    """Share of a freed block that goes back to the system; the block is one that glibc never keeps by itself."""
    made = torch.ones(64_000_000)
    before = psutil.Process().memory_info().rss
    size = made.nbytes
    del made
    return (before - psutil.Process().memory_info().rss) / size


@pytest.mark.slow  # tests/engine has the same of two shorter processes
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of keeping memory")
def test_of_two_processes_one_keeps_the_memory_of_its_steps() -> None:
    """Seen from behind the steps: what is freed stays in one process and leaves the other."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as plain, ProcessPoolExecutor(1, spawn, keep_memory) as keeping:
        processes = (plain, keeping)  # which start, and look at themselves, at the same time
        for begun in [process.submit(kept_memory.begin, CASE) for process in processes]:
            begun.result()
        for measured in [process.submit(kept_memory.measure, CASE.block) for process in processes]:
            seconds, cleared = measured.result()
            assert seconds > 0
            assert cleared >= 0
        shares = [given.result() for given in [process.submit(given_back) for process in processes]]
    as_it_comes, kept = shares
    assert as_it_comes > 0.9
    assert kept < 0.1
