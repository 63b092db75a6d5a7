"""The script for machines with a GPU, as far as one without can try it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def test_the_script_is_bash() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0


@pytest.mark.slow
def test_a_dry_run_collects_and_plans(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (700, 32, 32, 3), np.uint8), np.arange(700) % 10
    file = tmp_path / "cifar.npz"
    np.savez(file, x_train=images[:600], y_train=labels[:600], x_test=images[600:], y_test=labels[600:])
    words = [
        "--dry-run",
        f"data={{source: npz, path: {file}}}",
        "model={name: cnn, width: 4}",
        f"--out={tmp_path / 'out'}",
    ]
    done = subprocess.run(
        ["bash", SCRIPT, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_logged_terms_on_cuda" in done.stdout and "fixmatch WRN" in done.stdout
    assert "cifar10-published: " in done.stdout and "\nfixmatch " in done.stdout
    assert not (tmp_path / "out" / "leaderboard.md").exists()


def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(
        ["bash", SCRIPT], capture_output=True, text=True, check=False, env={**os.environ, "PYTHON": "false"}
    )
    assert done.returncode == 2 and "no GPU here; --dry-run checks" in done.stderr
