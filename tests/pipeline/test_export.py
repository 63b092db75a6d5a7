"""`semisup export`: files, table and model card of a run's stage."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import ExifTags, Image
from typer.testing import CliRunner

from semisup.cli.app import app
from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.pipeline.export import _in_own_sizes, export_model
from semisup.pipeline.export_images import _files, export_images
from semisup.stages import load_predictor
from semisup.stages.deployed import facts_of
from semisup.stages.export import export_weights
from semisup.stages.programs import Run
from tests.data.data_folders import make_root, settings
from tests.pipeline.pipeline_small import run_small, small


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_small(folder / "a", "stages.finetune.steps=60", "stages.finetune.init=null", "data.validation=0.3")
    return folder / "a" / "finetune"


@pytest.fixture(scope="module")
def lines(stage: Path) -> list[str]:
    return export_model(stage, stage.parent / "m.onnx", int8=True)


def test_float_and_int8_are_measured_next_to_torch(stage: Path, lines: list[str]) -> None:
    folder = stage.parent
    assert "opset 20" in lines[0] and lines[0].startswith(str(folder / "m.onnx"))
    table = {line.rsplit(None, 4)[0].strip(): line.split() for line in lines[4:7]}
    accuracy = 100 * json.loads((stage / "stage.json").read_text())["metrics"]["test/accuracy"]
    assert float(table["torch"][-4]) == float(table["onnx"][-4]) == pytest.approx(accuracy, abs=0.006)
    assert abs(float(table["onnx int8"][-4]) - accuracy) < 3
    sizes = [int(table[name][-1].replace(",", "")) for name in ("torch", "onnx", "onnx int8")]
    files = (stage / "model.safetensors", folder / "m.onnx", folder / "m-int8.onnx")
    assert sizes == [file.stat().st_size for file in files]


def test_the_metadata_are_texts_of_the_model_alone(stage: Path, lines: list[str]) -> None:
    model = onnx.load(stage.parent / "m.onnx")
    found = {item.key: item.value for item in model.metadata_props}
    predictor = load_predictor(stage)
    assert json.loads(found["classes"]) == predictor.classes
    assert float(found["temperature"]) == pytest.approx(predictor.temperature, rel=1e-5) and predictor.temperature != 1
    assert found["fit"] == "crop"
    assert found["data_hash"] == load_data(small().data).hash and found["precision"] == "float32"
    content = (stage.parent / "m.onnx").read_bytes()
    assert b"/work" not in content and b"site-packages" not in content and b".py" not in content


def test_the_card_says_what_it_is_worth(stage: Path, lines: list[str]) -> None:
    page = (stage.parent / "m.md").read_text(encoding="utf-8")
    assert page.startswith("# small: finetune\n")
    assert lines[-1] == f"model card: {stage.parent / 'm.md'}"
    for part in (
        "## Data",
        "## Accuracy",
        "## Calibration",
        "## Training",
        "## License",
        "## Precision",
        "m-int8.onnx",
    ):
        assert part in page
    assert load_data(small().data).hash in page and "method:" in page
    assert "Temperature" in page and "NaN" not in page


def test_the_pages_python_works_without_torch(stage: Path, lines: list[str], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "semisup" not in code and "torch" not in code
    shutil.copy(stage.parent / "m.onnx", tmp_path / "student.onnx")
    image = load_data(small().data).x_test[0, :, :, 0]
    _as_photo(image, tmp_path / "photo.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        names: dict[str, Any] = {}
        exec(code, names)  # noqa: S102 - the page's own code
    expected = load_predictor(stage).predict_proba(_hidden_white(image))
    assert np.allclose(names["probabilities"], expected, atol=1e-4)
    assert json.loads((stage.parent / "m.json").read_text())["classes"] == names["classes"]


def test_the_example_predicts_what_predict_does(stage: Path, lines: list[str], tmp_path: Path) -> None:
    image = load_data(small().data).x_test[0, :, :, 0]
    _as_photo(image, tmp_path / "photo.png")
    Image.fromarray(image.astype(np.uint16) * 257).save(tmp_path / "16-bit.png")
    done = _example(stage.parent / "m.onnx", tmp_path / "photo.png", tmp_path / "16-bit.png")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    predictor = load_predictor(stage)
    for row, shown in zip(rows, (_hidden_white(image), image), strict=True):
        expected = predictor.predict_proba(shown)[0]
        assert row["class"] == predictor.classes[expected.argmax()] and not row["error"]
        assert float(row["confidence"]) == pytest.approx(float(expected.max()), abs=2e-4)
    assert done.returncode == 0


def test_the_example_says_what_it_cannot_read_and_goes_on(stage: Path, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.full((9, 9), 1000, np.int32)).save(tmp_path / "32-bit.tif")
    Image.new("L", (9, 9)).save(tmp_path / "good.png")
    names = ["empty.png", "32-bit.tif", "absent.png", "good.png"]
    done = _example(stage.parent / "m.onnx", *(tmp_path / name for name in names))
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [Path(row["path"]).name for row in rows] == names and "Traceback" not in done.stderr
    assert [bool(row["class"]) for row in rows] == [not row["error"] for row in rows] == [False, False, False, True]
    assert done.returncode == 1


def _example(*words: Path) -> subprocess.CompletedProcess[str]:
    example = Path(__file__).parents[2] / "examples" / "onnx_predict.py"
    return subprocess.run([sys.executable, example, *words], check=False, capture_output=True, text=True)


def _as_photo(image: np.ndarray, file: Path) -> None:
    """Save it lying on its side, as its EXIF data say, and with its left half transparent."""
    alpha = np.full_like(image, 255)
    alpha[:, : image.shape[1] // 2] = 0
    pixels = np.rot90(np.stack((image, image, image, alpha), axis=-1))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise makes it upright
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, exif=exif)


def _hidden_white(image: np.ndarray) -> np.ndarray:
    """Return what such a photo shows on white ground."""
    shown = image.copy()
    shown[:, : image.shape[1] // 2] = 255
    return shown


def test_other_images_are_taken_where_the_run_is_not_at_hand(stage: Path, lines: list[str], tmp_path: Path) -> None:
    alone = tmp_path / "received"
    shutil.copytree(stage, alone)
    with pytest.raises(SemisupError, match=r"--int8: there is no .*recipe\.yaml, so name training images"):
        export_model(alone, tmp_path / "m.onnx", int8=True)
    export_model(alone, tmp_path / "m.pt2")
    assert (tmp_path / "m.md").read_text(encoding="utf-8").startswith("# finetune\n")
    noise = np.random.default_rng(0).integers(0, 256, (600, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x=noise)
    found = export_images(alone, facts_of(alone), tmp_path / "mine.npz", load_predictor(alone))
    assert found.train.shape == (512, 8, 8, 1) and found.y_test is None
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise[0]).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "broken.png").touch()
    found = export_images(alone, facts_of(alone), tmp_path / "photos", load_predictor(alone))
    assert np.array_equal(found.train, noise[:1, ..., None]) and [file.name for file in found.files] == ["a.png"]
    assert "1 file that cannot be read left out" in found.notes[0] and "broken.png (empty)" in found.notes[0]
    (tmp_path / "photos" / "a.png").unlink()
    with pytest.raises(SemisupError, match=r"no images found that can be read: .*broken\.png \(empty\)"):
        export_images(alone, facts_of(alone), tmp_path / "photos", load_predictor(alone))


def test_pictures_are_also_compared_in_their_own_sizes(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, photos = load_predictor(stage), tmp_path / "photos"
    photos.mkdir()
    sizes = [(17, 30), (40, 9), (8, 8), (50, 50)]
    for k, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(k).integers(0, 256, (height, width, 4), dtype=np.uint8)
        Image.fromarray(noise).save(photos / f"{k}.png")
    runs: dict[str, Run] = {
        "torch": lambda given: [predictor.predict_proba(given)],
        "onnx": lambda given: [predictor.predict_proba(given)],
        "onnx int8": lambda given: [predictor.predict_proba(given) * (-1 if given.shape[1] == 9 else 1)],
    }
    files = sorted(photos.iterdir())
    told = _in_own_sizes(runs, predictor, files)
    assert told.startswith("4 files in their own sizes (8 x 8 to 50 x 50 px) get the class")
    assert told.endswith("onnx 100.00%, onnx int8 75.00%")
    assert _in_own_sizes(runs, predictor, files[2:3]) == _in_own_sizes(runs, predictor, []) == ""
    monkeypatch.setattr("semisup.data.decode.WHOLE", 1000)
    assert _in_own_sizes(runs, predictor, files).startswith("3 files")
    monkeypatch.undo()
    found = export_model(stage, tmp_path / "m.onnx", int8=True, data=photos)
    assert found[-2].startswith("4 files in their own sizes") and found[-2] in (tmp_path / "m.md").read_text()


def test_the_files_of_a_run_are_those_of_its_test_images(tmp_path: Path) -> None:
    config = settings(make_root(tmp_path / "photos"))
    tested = _files(config)
    assert tested and {path.parent.parent.name for path in tested} == {"test"} and all(p.is_file() for p in tested)
    shutil.rmtree(tmp_path / "photos" / "test")
    assert {path.relative_to(tmp_path / "photos").parts[0] for path in _files(config)} >= {"labeled", "unlabeled"}


def test_files_of_another_export_are_replaced_with_a_word(stage: Path, tmp_path: Path) -> None:
    for name, also in (("m.onnx", []), ("m.pt2", ["m.json", "m.md"])):
        done = CliRunner().invoke(app, ["export", str(stage), str(tmp_path / name)])
        assert done.exit_code == 0
        there = ", ".join(str(tmp_path / file) for file in also)
        assert (f"note: replaced: {there}\n" in done.output) if also else "replaced" not in done.output


def test_a_suffix_in_capitals_is_the_same_format(stage: Path, tmp_path: Path) -> None:
    (told, _) = export_model(stage, tmp_path / "M.ONNX")
    assert "opset 20" in told and onnx.load(tmp_path / "M.ONNX").metadata_props


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["m.txt"], "must end in .onnx, .pt2 or .safetensors"),
        (["m.safetensors"], "goes with .safetensors"),
        (["m.onnx", "--to", "timm"], "goes with .safetensors"),
        (["m.safetensors", "--to", "keras"], "--to must be torchvision or timm"),
        (["m.pt2", "--int8"], "--int8: is of .onnx files"),
        (["m.safetensors", "--to", "timm", "--int8"], "--int8: is of .onnx files"),
        (["m.onnx", "--data", "photos"], "--data photos: nothing would be read of it"),
        (["m.safetensors", "--to", "timm", "--data", "photos"], "--data photos: nothing would be read of it"),
    ],
)
def test_what_does_not_go_together_is_refused(stage: Path, words: list[str], complaint: str) -> None:
    done = CliRunner().invoke(app, ["export", str(stage), *words])
    assert isinstance(done.exception, SemisupError) and complaint in str(done.exception)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        "export {stage} {stage}/model.onnx",
        "export {stage} {stage}/MODEL.pt2",
        "export {stage} {stage}/stage.onnx",
        "export {stage} {stage}/model.safetensors --to torchvision",
        "export {stage} {stage}/model.timm.safetensors --to timm",  # unlisted, for which readers refuse the stage
        "predict {stage} {stage}/confusion.png --out {stage}/model.csv",
    ],
)
def test_a_stage_keeps_its_own_files(stage: Path, command: str) -> None:
    before = contents(stage)
    done = CliRunner().invoke(app, command.format(stage=stage).split())
    assert isinstance(done.exception, SemisupError) and "of the finished stage; name another" in str(done.exception)
    assert contents(stage) == before and "note" not in done.output


def test_python_keeps_the_files_of_a_stage(stage: Path) -> None:
    before = contents(stage)
    for export in (export_model, lambda *given: export_weights(given[0], "torchvision", given[1])):
        with pytest.raises(SemisupError, match="of the finished stage"):
            export(stage, stage / "model.onnx")
    assert contents(stage) == before
