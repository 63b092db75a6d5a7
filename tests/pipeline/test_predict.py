"""Image files to a table of classes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.pipeline.predict import predict_files
from semisup.stages import load_predictor
from tests.pipeline.pipeline_small import run_small, small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_small(folder / "a", "stages.finetune.steps=60", "stages.finetune.init=null")
    return folder / "a" / "finetune"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve test digits as PNG files, two of them deeper down and one of those in capitals."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    for i, image in enumerate(load_data(small().data).x_test[:12]):
        name = {10: "deep/10.png", 11: "deep/er/11.PNG"}.get(i, f"{i:02}.png")
        Image.fromarray(image[:, :, 0]).save(folder / name)
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_is_searched_at_any_depth(model: Path, photos: Path) -> None:
    found = rows(predict_files(model, [photos], "cpu"))
    names = [f"{i:02}.png" for i in range(10)] + ["deep/10.png", "deep/er/11.PNG"]
    assert [row["path"] for row in found] == [str(photos / name) for name in names]
    probs = load_predictor(model).predict(load_data(small().data).x_test[:12])
    assert [row["class"] for row in found] == [str(label) for label in probs.argmax(1)]
    assert [float(row["confidence"]) for row in found] == pytest.approx(probs.max(1), abs=1e-4)


def test_files_may_be_of_any_kind_size_and_color(model: Path, tmp_path: Path) -> None:
    image = Image.fromarray(load_data(small().data).x_test[0][:, :, 0])
    image.save(tmp_path / "a.png")
    expected = rows(predict_files(model, [tmp_path / "a.png"], "cpu"))[0]["class"]
    image.resize((64, 64)).convert("RGB").save(tmp_path / "b.jpg", quality=95)
    image.convert("RGBA").resize((40, 40)).save(tmp_path / "c.png")
    image.convert("P").save(tmp_path / "d.bmp")
    found = rows(predict_files(model, sorted(tmp_path.iterdir()), "cpu"))
    assert [row["class"] for row in found] == [expected] * 4


def test_a_photograph_on_its_side_is_set_upright(model: Path, tmp_path: Path) -> None:
    image = Image.fromarray(load_data(small().data).x_test[0][:, :, 0]).resize((32, 32))
    image.save(tmp_path / "upright.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    upright, on_its_side = rows(predict_files(model, [tmp_path / "upright.png", tmp_path / "turned.png"], "cpu"))
    assert upright["confidence"] == on_its_side["confidence"]


def test_every_bad_file_is_named(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    whole = (photos / "00.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "good.png")
    with pytest.raises(SemisupError) as caught:
        predict_files(
            model, [tmp_path / "nosuch.png", tmp_path / "text.png", tmp_path / "good.png", tmp_path / "torn.png"]
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "predict: 3 problems"
    assert lines[1] == f"  - {tmp_path / 'nosuch.png'}: no such file"
    assert lines[2] == f"  - {tmp_path / 'text.png'}: not a PNG, JPEG, WebP, TIFF or BMP image"
    assert lines[3].startswith(f"  - {tmp_path / 'torn.png'}: not a readable image (")


def test_an_empty_folder_is_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match=r"predict: no images found; looked for \.bmp, \.jpeg, \.jpg, \.png"):
        predict_files(model, [tmp_path])


def test_an_unknown_device_is_an_error(model: Path, photos: Path) -> None:
    with pytest.raises(SemisupError, match="device: unknown device 'quantum'"):
        predict_files(model, [photos], "quantum")
