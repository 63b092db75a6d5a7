"""A run keeps the memory of its steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.nursery import Nursery

RUN = """
import sys, psutil, torch
from pathlib import Path
from tests.pipeline.pipeline_small import run_small
run_small(Path(sys.argv[1]))
before = psutil.Process().memory_info().rss
made = torch.ones(30_000_000)  # 120 MB, more than glibc ever keeps by itself
del made
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of keeping memory")
def test_a_run_keeps_the_memory_of_its_steps(nursery: Nursery, tmp_path: Path) -> None:
    """Seen from behind it: what is freed stays with the process."""
    code, output = nursery.run(Path(__file__).parents[2], str(tmp_path / "run"), code=RUN, log=tmp_path / "log")
    assert code == 0 and int(output.split()[-1]) > 100_000_000, output
