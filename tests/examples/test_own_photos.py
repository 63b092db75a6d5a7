"""examples/own_photos.sh from a folder of pictures to predictions of onnxruntime, with small pictures and few steps."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from semisup.stages import load_predictor
from tests.pipeline.test_draft import pictures

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow  # 600 steps, and an export
def test_a_folder_of_pictures_becomes_predictions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pictures(tmp_path / "photos", labeled=10, unlabeled=30, test=20)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ["bash", str(ROOT / "examples" / "own_photos.sh"), str(tmp_path), "0.1", "100"]
    done = subprocess.run(words, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 40
    assert sum(row["class"] == Path(row["path"]).parent.name for row in rows) >= 36
    assert (tmp_path / "runs/photos/report.html").exists() and (tmp_path / "runs/small/students.md").exists()
    student = load_predictor(tmp_path / "runs/small/student_cnn_width_16")
    named = [student.classes[k] for k in student.predict_proba([tmp_path / row["path"] for row in rows]).argmax(1)]
    assert sum(name == row["class"] for name, row in zip(named, rows, strict=True)) >= 38, "8 bits cost next to nothing"
