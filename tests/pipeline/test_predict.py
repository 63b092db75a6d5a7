"""Image files to a table of classes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.pipeline.predict import PredictOptions, predict_files
from semisup.pipeline.tables import open_table
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


def predict(model: Path, *inputs: Path, **options: Any) -> list[dict[str, str]]:
    """Rows of the table that is written."""
    out = model.parent / "table.csv"
    done = predict_files(model, inputs, out, PredictOptions("cpu", **options))
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = list(csv.DictReader(file))
    assert len(found) == done.good + done.bad and sum(row["error"] != "" for row in found) == done.bad
    return found


def test_a_folder_is_searched_at_any_depth(model: Path, photos: Path) -> None:
    found = predict(model, photos)
    names = [f"{i:02}.png" for i in range(10)] + ["deep/10.png", "deep/er/11.PNG"]
    assert [row["path"] for row in found] == [str(photos / name) for name in names]
    probs = load_predictor(model).predict(load_data(small().data).x_test[:12])
    assert [row["class"] for row in found] == [str(label) for label in probs.argmax(1)]
    assert [float(row["confidence"]) for row in found] == pytest.approx(probs.max(1), abs=1e-4)


def test_what_training_passes_over_is_passed_over(model: Path, photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "album.jpg"
    shutil.copytree(photos / "deep", root / ".hidden")
    shutil.copytree(photos / "deep", root / "__MACOSX")
    shutil.copytree(photos / "deep", root / "inner.png")
    (root / "._10.png").write_bytes(b"junk")
    (root / "Thumbs.db").write_bytes(b"junk")
    shutil.copy(photos / "00.png", root / "no suffix")
    (root / "link").symlink_to(photos / "deep")
    (root / "round").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.png")  # opening it would wait for ever
    found = {row["path"].removeprefix(f"{root}/"): row["error"] for row in predict(model, root)}
    inner = ["inner.png/10.png", "inner.png/er/11.PNG", "link/10.png", "link/er/11.PNG", "no suffix"]
    assert found == {"gone.png": "a link to nowhere"} | dict.fromkeys(inner, "")


def test_a_standard_output_that_takes_nothing(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(SemisupError, match=r"standard output: cannot be written \(No space left"):
            predict_files(model, [photos / "00.png"])
        monkeypatch.setattr("sys.stdout", None)
        with pytest.raises(SemisupError, match="standard output is closed; name a file with --out"):
            predict_files(model, [photos / "00.png"])
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_an_empty_folder_next_to_others_is_told(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = predict_files(model, [tmp_path / "empty", photos / "00.png"], tmp_path / "t.csv")
    assert (done.good, done.bad, done.notes) == (1, 0, (f"{tmp_path / 'empty'}: no image is in this folder",))


def test_what_is_named_is_read_whatever_it_is_called(model: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "00.png", tmp_path / ".hidden.txt")
    os.mkfifo(tmp_path / "pipe.png")
    found = predict(model, tmp_path / ".hidden.txt", tmp_path / "pipe.png", tmp_path / "none.png")
    assert [row["error"] for row in found] == ["", "a pipe, not a file", "no such file"]


@pytest.mark.parametrize(("terminal", "name"), [(True, r"a\x1b[2J\u202eb.png"), (False, "a\x1b[2J\u202eb.png")])
def test_a_terminal_is_shown_no_sign_that_it_obeys(terminal: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdout", shown)
    with open_table(None, {"path": str}) as write:
        write([{"path": "a\x1b[2J\u202eb.png"}])
    assert shown.getvalue() == f"path\n{name}\n"


def test_names_that_are_not_utf8_keep_their_bytes(model: Path, photos: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(photos / "00.png", tmp_path / name)
    assert [row["path"] for row in predict(model, tmp_path)] == [str(tmp_path / name)]
    for suffix, raw in ((".jsonl", rb"caf\udce9.png"), (".parquet", rb"caf\udce9.png")):
        predict_files(model, [tmp_path / name], tmp_path / f"t{suffix}", PredictOptions("cpu"))
        assert raw in (tmp_path / f"t{suffix}").read_bytes()


def test_patterns_arrays_and_tables(model: Path, photos: Path, tmp_path: Path) -> None:
    images = load_data(small().data).x_test[:12]
    expected = [row["class"] for row in predict(model, photos)]
    found = predict(model, photos / "0?.png")
    assert [row["class"] for row in found] == expected[:10]
    np.savez(tmp_path / "a.npz", x_test=images[..., 0])
    found = predict(model, tmp_path / "a.npz")
    assert [row["class"] for row in found] == expected and found[3]["path"] == f"{tmp_path / 'a.npz'}[x_test][3]"
    table = photos / "t.csv"
    table.write_text("label,file\n?,deep/10.png\n?,none.png\n")
    found = predict(model, table)
    table.unlink()
    assert [row["class"] for row in found] == [expected[10], ""] and found[1]["error"] == "no such file"
    with pytest.raises(SemisupError, match="no file has such a name"):
        predict(model, photos / "*.tiff")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8)))
    with pytest.raises(SemisupError, match="x: must be uint8"):
        predict(model, tmp_path / "a.npz")


def test_more_than_the_best_class(model: Path, photos: Path) -> None:
    predictor = load_predictor(model)
    images = load_data(small().data).x_test[:10]
    probs = predictor.predict_proba(images, mirror=True)
    confident = float(np.median(probs.max(1)))
    found = predict(model, photos / "0?.png", top=3, probabilities=True, embed=True, mirror=True, abstain=confident)
    for row, p, e in zip(found, probs, predictor.embed(images, mirror=True), strict=True):
        best = np.argsort(-p)
        assert row["class"] == ("" if p.max() < confident else str(best[0]))
        assert [row["class_2"], row["class_3"]] == [str(k) for k in best[1:3]]
        assert [float(row[f"p_{k}"]) for k in range(10)] == pytest.approx(p, abs=1e-5)
        assert [float(row[f"e{i}"]) for i in range(len(e))] == pytest.approx(e, rel=1e-4, abs=1e-5)
    assert 0 < sum(row["class"] == "" for row in found) < 10


def test_tables_of_every_kind_say_the_same(model: Path, photos: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    expected = predict(model, photos, top=2)
    for suffix in (".jsonl", ".parquet"):
        predict_files(model, [photos], tmp_path / f"t{suffix}", PredictOptions("cpu", top=2))
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    columns = pq.read_table(tmp_path / "t.parquet").to_pylist()
    for rows in (lines, columns):
        assert [row["class_2"] for row in rows] == [row["class_2"] for row in expected]
        assert [list(row) for row in rows] == [list(row) for row in expected]
    with pytest.raises(SemisupError, match=r"must end in \.csv, \.jsonl, \.parquet"):
        predict_files(model, [photos], tmp_path / "t.xlsx")


def test_many_files_are_decoded_by_processes_in_order(model: Path, photos: Path, tmp_path: Path) -> None:
    for i in range(600):
        shutil.copy(photos / f"{i % 10:02}.png", tmp_path / f"{i:04}.png")
    (tmp_path / "0555.png").write_bytes(b"")
    seen: list[int] = []

    @contextmanager
    def watch(what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield seen.append

    out = tmp_path / "t.csv"
    done = predict_files(model, [tmp_path], out, PredictOptions("cpu", workers=2), watch)
    assert (done.good, done.bad, seen) == (599, 1, [512, 600])
    with out.open(newline="") as file:
        found = list(csv.DictReader(file))
    expected = [row["class"] for row in predict(model, photos / "0?.png")]
    assert [row["class"] for row in found] == ["" if i == 555 else expected[i % 10] for i in range(600)]


def test_files_may_be_of_any_kind_size_and_color(model: Path, tmp_path: Path) -> None:
    image = Image.fromarray(load_data(small().data).x_test[0][:, :, 0])
    image.save(tmp_path / "a.png")
    expected = predict(model, tmp_path / "a.png")[0]["class"]
    image.resize((64, 64)).convert("RGB").save(tmp_path / "b.jpg", quality=95)
    image.convert("RGBA").resize((40, 40)).save(tmp_path / "c.png")
    image.convert("P").save(tmp_path / "d.bmp")
    found = predict(model, *sorted(tmp_path.iterdir()))
    assert [row["class"] for row in found] == [expected] * 4


def test_a_photograph_on_its_side_is_set_upright(model: Path, tmp_path: Path) -> None:
    image = Image.fromarray(load_data(small().data).x_test[0][:, :, 0]).resize((32, 32))
    image.save(tmp_path / "upright.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    upright, on_its_side = predict(model, tmp_path / "upright.png", tmp_path / "turned.png")
    assert upright["confidence"] == on_its_side["confidence"]


def test_a_bad_file_has_a_row_with_its_error(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    whole = (photos / "00.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "good.png")
    good, text, torn = predict(model, tmp_path)
    assert good["class"] and not good["error"]
    assert (text["class"], text["confidence"], text["error"]) == ("", "", "not a PNG, JPEG, WebP, TIFF or BMP image")
    assert torn["class"] == "" and torn["error"].startswith("not a readable image (")


def test_an_empty_folder_is_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match=rf"predict: no images found in {tmp_path}; looked for \.bmp"):
        predict_files(model, [tmp_path])


def test_an_unknown_device_is_an_error(model: Path, photos: Path) -> None:
    with pytest.raises(SemisupError, match="device: unknown device 'quantum'"):
        predict_files(model, [photos], None, PredictOptions("quantum"))


def test_patterns_pass_over_what_systems_leave_and_tables_say_where_they_begin(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copy(photos / "00.png", tmp_path / "00.png")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert [row["path"] for row in predict(model, tmp_path / "*")] == [str(tmp_path / "00.png")]
    table = tmp_path / "t.csv"
    table.write_text("path\nx\\00.png\nx\\01.png\n")
    found = predict_files(model, [table], tmp_path / "out.csv", PredictOptions("cpu"))
    assert found.bad == 2 and "paths begin at its own folder" in found.notes[0]
    (tmp_path / "x").mkdir()
    shutil.copy(photos / "00.png", tmp_path / "x")
    found = predict_files(model, [table], tmp_path / "out.csv", PredictOptions("cpu"))
    assert (found.good, found.bad) == (1, 1)  # backslashes separate folders, as in training
    assert [note.rpartition(": ")[2] for note in found.notes] == ["no such file"]
    table.write_bytes("path\n\xe9.png\n".encode("latin-1"))
    with pytest.raises(SemisupError, match=r"^/\S+t.csv is not text in UTF-8"):
        predict(model, table)


def test_a_pattern_names_nothing_twice(model: Path, photos: Path) -> None:
    expected = [row["path"] for row in predict(model, photos)]
    assert sorted(row["path"] for row in predict(model, photos / "**") if not row["error"]) == sorted(expected)
    assert len(predict(model, photos / "0?.png", photos / "00.png")) == 11  # what is named twice is wanted twice


def test_what_is_read_is_not_written_over_by_any_name(model: Path, photos: Path, tmp_path: Path) -> None:
    table, twin = tmp_path / "t.csv", tmp_path / "twin.csv"
    table.write_text(f"path\n{photos / '00.png'}\n")
    twin.hardlink_to(table)
    for given, out in ((table, twin), (tmp_path / "*.csv", table)):
        with pytest.raises(SemisupError, match=r"--out .*\.csv: is what is read; name another file"):
            predict_files(model, [given], out, PredictOptions("cpu"))
    assert table.read_text().startswith("path\n")


def test_a_name_that_the_system_refuses_is_a_row_like_others(model: Path, photos: Path) -> None:
    good, bad = predict(model, photos / "00.png", Path("a" * 300))
    assert good["class"] and bad["error"] == "cannot be opened (File name too long)"
    (found,) = (row["error"] for row in predict(model, table_of(photos, "b" * 300)))
    assert found == "cannot be read (File name too long)"


def table_of(photos: Path, name: str) -> Path:
    table = photos.parent / "names.csv"
    table.write_text(f"path\n{name}\n")
    return table


def test_no_process_is_started_that_would_have_nothing_to_do(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def few(processes: int, **options: Any) -> Any:
        asked.append(processes)
        return ThreadPoolExecutor(1)

    monkeypatch.setattr("joblib.externals.loky.ProcessPoolExecutor", few)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", lambda self, **options: None)
    for i in range(80):
        shutil.copy(photos / "00.png", tmp_path / f"{i}.png")
    assert len(predict(model, tmp_path, workers=100_000)) == 80
    assert asked == [10]
