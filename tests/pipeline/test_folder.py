"""A recipe on a folder of one's own: decoded by the run, held in memory or not, validated, judged, predicted from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semisup.config import parse_recipe
from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.pipeline import RunResult, run
from semisup.pipeline.predict import PredictOptions, predict_files
from tests.pipeline.pipeline_small import SMALL

CLASSES = ("blue", "red")
DATA = {"source": "folder", "labels": "all", "size": 8}


def blot(kind: int, number: int) -> Image.Image:
    """A picture of 20 x 16 pixels that is mostly of one color."""
    noise = np.random.default_rng(number).integers(0, 100, (16, 20, 3))
    noise[..., 2 - 2 * kind] += 150
    return Image.fromarray(noise.astype(np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 labeled, 30 unlabeled, 6 validation and 10 test images."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    number = 0
    for part, count in (("labeled", 10), ("unlabeled", 30), ("val", 6), ("test", 10)):
        for i in range(count):
            path = folder / part / ("" if part == "unlabeled" else CLASSES[i % 2]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            blot(i % 2, number).save(path)
            number += 1
    return folder


def run_on(root: Path, out: Path, *overrides: str, quiet: bool = True) -> RunResult:
    data = DATA | {"path": str(root), "cache": str(out.parent / "cache")}
    return run(parse_recipe(SMALL | {"data": data}, overrides), out=out, quiet=quiet)


def weights(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("*/*.safetensors"))}


def timeless(result: RunResult) -> list[dict[str, Any]]:
    return [stage.metrics for stage in result.stages]


def test_a_set_that_is_not_in_memory_trains_to_the_same_weights(root: Path, tmp_path: Path) -> None:
    """Every kind of stage, bit for bit."""
    inside = run_on(root, tmp_path / "a" / "run", "data.memory=4")
    outside = run_on(root, tmp_path / "b" / "run", "data.memory=0")
    assert weights(tmp_path / "a" / "run") == weights(tmp_path / "b" / "run")
    assert timeless(inside) == timeless(outside)
    assert [stage.fingerprint for stage in inside.stages] == [stage.fingerprint for stage in outside.stages]
    assert inside.data["n_train"] == 40 and inside.data["n_validation"] == 6 and inside.data["n_test"] == 10


def test_a_second_run_reuses_the_store_and_the_stages(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_on(root, tmp_path / "one", quiet=False)
    assert f"decoding {root}: 56 files" in capsys.readouterr().out
    monkeypatch.setattr("semisup.data.decoders.decode", None)  # would fail
    again = run_on(root, tmp_path / "two", quiet=False)
    assert {stage.status for stage in again.stages} == {"reused"}
    assert "decoding" not in capsys.readouterr().out


def test_validation_images_of_its_own_are_evaluated_and_never_trained_on(root: Path, tmp_path: Path) -> None:
    stages = {"train": {"method": {"name": "supervised"}, "batch": {"labeled": 10}, "steps": 60}}
    data = DATA | {"path": str(root), "cache": str(tmp_path / "cache")}
    recipe = parse_recipe(SMALL | {"data": data, "stages": stages})
    (stage,) = run(recipe, out=tmp_path / "out", quiet=True).stages
    assert stage.metrics["validation/accuracy"] == stage.metrics["test/accuracy"] == 1.0
    assert json.loads((tmp_path / "out/train/model.json").read_text())["classes"] == list(CLASSES)
    predict_files(tmp_path / "out/train", [root / "unlabeled"], tmp_path / "t.csv", PredictOptions("cpu"))
    rows = (tmp_path / "t.csv").read_text().splitlines()[1:]
    assert len(rows) == 30
    for row in rows:
        path, name, _, _ = row.split(",")
        assert name == CLASSES[int(Path(path).stem) % 2]


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_prediction_reads_files_as_training_did(root: Path, tmp_path: Path, fit: str) -> None:
    """The confidences of files are those of the store's rows."""
    from semisup.stages import load_predictor

    result = run_on(root, tmp_path / "out", f"data.fit={fit}")
    place = {"path": str(root), "cache": str(tmp_path / "cache"), "fit": fit}
    data = load_data(parse_recipe(SMALL | {"data": DATA | place}).data)
    probs = load_predictor(tmp_path / "out" / "finetune").predict(data.x_test)
    predict_files(tmp_path / "out" / "finetune", [root / "test"], tmp_path / "t.csv", PredictOptions("cpu"))
    rows = (tmp_path / "t.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[2]) for row in rows] == pytest.approx(probs.max(1), abs=1e-4)
    assert result.stages


def test_what_is_wrong_with_the_folder_is_told_with_the_rest(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SemisupError) as caught:
        run_on(root, tmp_path / "out", "data.size=null", "model.name=wrnn")
    assert "data.size: missing" in str(caught.value) and "model.name" in str(caught.value)


def test_bad_files_are_warned_of(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for part in root.iterdir():
        (tmp_path / "photos" / part.name).symlink_to(part)
    (tmp_path / "photos" / "unlabeled").unlink()
    (tmp_path / "photos" / "unlabeled").mkdir()
    (tmp_path / "photos" / "unlabeled" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    run_on(tmp_path / "photos", tmp_path / "out", "data.max_bad=0.1", "stages.student.steps=1", quiet=False)
    assert "warning: 1 of 27 files cannot be read and are left out: unlabeled/torn.jpg" in capsys.readouterr().err
