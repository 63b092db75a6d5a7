"""A run keeps the memory of its steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import resource, sys, torch
from pathlib import Path
from pipeline_small import run_small
run_small(Path(sys.argv[1]))
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(10_000_000) for _ in range(3)]  # 40 MB each, which glibc never keeps by itself
    del made
    settled = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(settled)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of keeping memory")
def test_a_run_keeps_the_memory_of_its_steps(tmp_path: Path) -> None:
    """Seen from behind it: what is asked for again needs no new pages (29,297 of them otherwise)."""
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert int(done.stdout.split()[-1]) < 200
