"""The scripts of examples/ for the three uses, one after another as a reader meets them, with few steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from semisup.config import load_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / words[0]), *words[1:]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow  # five processes that import torch
@pytest.mark.timeout(1800)
def test_a_recipe_a_benchmark_and_a_student(tmp_path: Path) -> None:
    stages = load_recipe("digits/quickstart").stages
    short = [f"stages.{name}.steps=2" if stage.steps else f"stages.{name}.epochs=0.1" for name, stage in stages.items()]
    told = run(tmp_path, "run_a_recipe.py", "runs/mine", *short)
    assert "student" in told and (tmp_path / "runs/mine/report.html").exists()
    told = run(tmp_path, "distill_a_student.py", "runs/mine/selftrain", "2")
    assert "student_cnn_width_4" in told.splitlines()[-1]
    told = run(tmp_path, "compare_methods.py", "runs/three", "draws=1", "labels=[20]", "defaults.steps=2")
    assert "mixmatch" in told and (tmp_path / "runs/three/report.html").exists()
