"""What a finished stage leaves on disk, and how damage to it is answered."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from semisup.data import channel_statistics
from semisup.engine import resolve_device
from semisup.errors import SemisupError
from semisup.records import digest, file_digest, read_record, verify
from semisup.stages import Artifact, load_predictor, read_artifact, write_json
from semisup.stages.artifact import finish
from semisup.stages.predictor import _load_pyfunc, load_features, load_network
from tests.stages.stages_small import run_stages, small_data, train_stage, with_test


def made(folder: Path, **files: str) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    record = {"name": "s", "method": "m", "fingerprint": folder.name, "steps": 1, "seconds": 1.0, "parameters": 0}
    return finish(folder, list(files), {**record, "metrics": {"a": 1.0}})


def signed(folder: Path, **changes: object) -> None:
    """Change a record by hand, its own checksum too: what somebody does who wants to be believed."""
    record = json.loads((folder / "stage.json").read_text()) | changes
    (folder / "stage.json").write_text(json.dumps(record | {"digest": digest(record)}))


def strict(text: str) -> object:
    def refuse(word: str) -> None:
        raise AssertionError(f"not strict JSON: {word}")

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_what_could_not_be_measured_is_null(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [1.5, math.inf, (-math.inf, 2)], "c": {"d": math.nan, "e": "NaN"}, "f": None}
    write_json(tmp_path / "x.json", value)
    expected = {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": None, "e": "NaN"}, "f": None}
    assert strict((tmp_path / "x.json").read_text()) == expected


def test_a_record_is_read_back(tmp_path: Path) -> None:
    written = made(tmp_path / "s", one="1", two="2")
    read = read_artifact(tmp_path / "s")
    assert read is not None
    assert read.record == written.record
    assert (read.fingerprint, read.metrics) == ("s", {"a": 1.0})


def test_a_folder_without_a_record_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("half of a stage")
    assert read_artifact(tmp_path) is None


def test_damage_is_an_error_that_says_what_to_delete(tmp_path: Path) -> None:
    folder = tmp_path / "s"

    def refused(rule: str) -> None:
        with pytest.raises(SemisupError, match=rule) as caught:
            read_artifact(folder)
        assert str(caught.value).endswith(f"delete {folder} to run the stage again")
        made(folder, one="1", two="2")

    made(folder, one="1", two="2")
    (folder / "two").write_text("3")
    refused("two: missing or damaged")
    (folder / "two").unlink()
    refused("two: missing or damaged")
    for text in ('{"files": 3', "[]", "3", "{}", "[" * 100_000, '{"a": "\\ud800"}'):
        (folder / "stage.json").write_text(text)
        refused("damaged")
    (folder / "stage.json").write_bytes(b"\xff\xfe")
    refused("damaged")


def test_a_record_that_was_changed_is_refused(tmp_path: Path) -> None:
    """A better accuracy, a switched off comparison: the record has a checksum of its own."""
    folder = tmp_path / "s"
    for change in ({"metrics": {"a": 2.0}}, {"files": {}}, {"seconds": 2.0}, {"more": 1}, {"digest": "0" * 64}):
        made(folder, one="1")
        record = json.loads((folder / "stage.json").read_text())
        (folder / "stage.json").write_text(json.dumps(record | change))
        with pytest.raises(SemisupError, match="it has been changed"):
            read_artifact(folder)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"fingerprint": "other"}, "the record of another stage"),
        ({"fingerprint": "../s"}, "fingerprint: .* plain file name"),
        ({"files": {"../victim.txt": "0" * 64}}, "plain file name"),
        ({"files": {"/etc/passwd": "0" * 64}}, "plain file name"),
        ({"files": {"one": "x"}}, "files.one"),
        ({"files": ["one"]}, "files"),
        ({"files": {}}, "does not list model.json"),
        ({"metrics": 3}, "metrics"),
        ({"steps": "3"}, "steps"),
        ({"seconds": -1.0}, "seconds"),
        ({"name": None}, "name"),
    ],
)
def test_a_record_with_a_right_checksum_is_still_checked(change: dict[str, object], rule: str, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    made(folder, one="1", **{"model.json": "{}"})
    signed(folder, **change)
    with pytest.raises(SemisupError, match=rule):
        read_artifact(folder)


def test_a_record_from_elsewhere_deletes_nothing(tmp_path: Path) -> None:
    (tmp_path / "victim.txt").write_text("mine")
    made(tmp_path / "out" / "a", old="old")
    signed(tmp_path / "out" / "a", files={"../../victim.txt": "0" * 64, "old": "0" * 64})
    made(tmp_path / "store", new="new").link_into(tmp_path / "out" / "a")
    assert (tmp_path / "victim.txt").read_text() == "mine"
    assert (tmp_path / "out" / "a" / "new").read_text() == "new"


def test_linking_shows_the_same_files_elsewhere(tmp_path: Path) -> None:
    artifact = made(tmp_path / "store", one="1")
    artifact.link_into(tmp_path / "out" / "s")
    shown = read_record(tmp_path / "out" / "s")
    verify(tmp_path / "out" / "s", shown)
    assert shown == artifact.record
    artifact.link_into(tmp_path / "out" / "s")  # a second time changes nothing
    assert sorted(path.name for path in (tmp_path / "out" / "s").iterdir()) == ["one", "stage.json"]


def test_linking_takes_away_what_an_earlier_stage_showed_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(tmp_path / "first", model="old", plot="old").link_into(out)
    (out / "notes.txt").write_text("mine")
    made(tmp_path / "second", model="new").link_into(out)
    assert sorted(path.name for path in out.iterdir()) == ["model", "notes.txt", "stage.json"]
    assert (out / "model").read_text() == "new"
    assert (tmp_path / "first" / "plot").read_text() == "old"


def test_copies_serve_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError("Operation not permitted")

    artifact = made(tmp_path / "store", one="1")
    monkeypatch.setattr("os.link", no_links)
    artifact.link_into(tmp_path / "out")
    verify(tmp_path / "out", read_record(tmp_path / "out"))


# The predictor


def test_the_saved_model_gives_the_recorded_accuracy(tmp_path: Path) -> None:
    data = small_data()
    done = run_stages({"train": train_stage("supervised", stage={"steps": 20})}, data, tmp_path)["train"]
    predictor = load_predictor(done.folder)
    probs = predictor.predict(data.x_test)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    assert (probs.argmax(1) == data.y_test).mean() == done.metrics["test/accuracy"]
    assert predictor.classes == data.classes
    logs = -np.log(probs[np.arange(len(probs)), data.y_test]).mean()
    assert logs == pytest.approx(done.metrics["test/nll"], rel=1e-4)


def test_the_average_is_saved_and_both_are_evaluated(tmp_path: Path) -> None:
    data = small_data()
    done = run_stages({"train": train_stage("supervised", stage={"steps": 8, "ema": 0.95})}, data, tmp_path)["train"]
    assert done.metrics["test/nll"] != done.metrics["test_raw/nll"]
    plain = run_stages({"train": train_stage("supervised", stage={"ema": None})}, data, tmp_path / "2")["train"]
    assert plain.metrics["test/nll"] == plain.metrics["test_raw/nll"]
    assert {"test/accuracy", "test/nll", "test/ece", "test/per_class_accuracy", "test/confusion"} <= set(done.metrics)
    assert np.sum(done.metrics["test/confusion"]) == len(data.y_test)


def test_a_class_without_test_images_has_no_accuracy(tmp_path: Path) -> None:
    data = small_data()
    keep = data.y_test != 1
    data = with_test(data, data.x_test[keep], data.y_test[keep])
    done = run_stages({"train": train_stage("supervised")}, data, tmp_path)["train"]
    strict((done.folder / "stage.json").read_text())
    per_class = done.metrics["test/per_class_accuracy"]
    assert per_class[1] is None
    assert per_class[0] is not None


@pytest.mark.parametrize("method", ["supervised", "simclr"])
def test_without_test_images_a_stage_is_trained_and_not_evaluated(method: str, tmp_path: Path) -> None:
    data = small_data()
    data = with_test(data, data.x_test[:0], data.y_test[:0])
    done = run_stages({"train": train_stage(method)}, data, tmp_path)["train"]
    assert not [name for name in done.metrics if name.startswith(("test", "knn", "probe"))]
    assert read_artifact(done.folder) is not None


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), "must be uint8 of shape (n, h, w, c)"),
        (np.zeros((2, 8, 8, 2), np.uint8), "not uint8 of shape (2, 8, 8, 2)"),
        (np.zeros(8, np.uint8), "not uint8 of shape (8,)"),
        ([np.zeros((2, 8, 8, 1), np.uint8), 3], "image 0: is several images"),
        ([np.zeros((8, 8), np.uint8), 3], "image 1: must be a path, a Pillow image or an array, not int"),
        ([np.zeros((8, 8), np.float32)], "images: image 0: must be uint8"),
        (["nosuch.png"], "nosuch.png: no such file"),
        (np.zeros((8, 9, 4), np.uint8), "(8, 9, 4) may be one image with transparency"),
        ([np.zeros((8, 9, 4), np.uint8)], "image 0: an array (8, 9, 4) may be one image with transparency"),
        (None, "or several of them, not NoneType"),
        (b"png", "or several of them, not bytes"),
        (torch.zeros(2, 3, 8, 8), "not Tensor of Tensor; of a tensor hand over its numpy(), (n, h, w, c)"),
        ([[1, 2], [3, 4]], "or several of them, not list of list"),
    ],
)
def test_a_predictor_refuses_other_images(images: Any, words: str, model_folder: Path) -> None:
    with pytest.raises(SemisupError) as caught:
        load_predictor(model_folder).predict(images)
    assert str(caught.value).startswith("images: ") and words in str(caught.value)


def test_a_predictor_takes_images_of_any_kind_and_size(model_folder: Path, tmp_path: Path) -> None:
    predictor = load_predictor(str(model_folder))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "a.png")
    expected = predictor.predict(pixels[None])
    assert expected.shape == (1, 3) and predictor.classes_ == predictor.classes
    large = pixels.repeat(4, 0).repeat(4, 1)
    for images in (pixels, pixels[:, :, 0], pixels.repeat(3, 2), tmp_path / "a.png", [str(tmp_path / "a.png")]):
        np.testing.assert_allclose(predictor.predict_proba(images), expected, atol=1e-6)
    assert predictor.predict(Image.open(tmp_path / "a.png")).tolist() == expected.tolist()
    assert predictor.predict(np.array([str(tmp_path / "a.png")])).tolist() == expected.tolist()
    several = predictor.predict_proba([large, pixels, Image.fromarray(large[:, :, 0])])
    assert several[0].tolist() == several[2].tolist() and np.abs(several[1] - expected).max() < 1e-6
    both = (expected + predictor.predict(pixels[None, :, ::-1])) / 2
    np.testing.assert_allclose(predictor.predict_proba(pixels, mirror=True), both, atol=1e-6)
    features = torch.from_numpy(predictor.embed(pixels))
    torch.testing.assert_close(predictor.network.head(features).softmax(1).detach(), torch.from_numpy(expected))


def test_a_predictor_is_loaded_onto_devices_by_the_names_of_recipes(model_folder: Path) -> None:
    assert load_predictor(model_folder, "auto").normalize.mean.device == resolve_device("auto")
    with pytest.raises(SemisupError, match="device: unknown device 'gpu'; did you mean 'cpu'"):
        load_predictor(model_folder, "gpu")


def test_the_folder_of_a_run_is_answered_with_its_stages(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "out" / "m")
    with pytest.raises(SemisupError, match=rf"out: not a model folder \(no model\.json\); .* folder: {folder}$"):
        load_predictor(str(folder.parent))


def test_a_predictor_gives_no_rows_for_no_images(model_folder: Path) -> None:
    assert load_predictor(model_folder).predict(np.zeros((0, 8, 8, 1), np.uint8)).shape == (0, 3)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return run_stages({"train": train_stage("supervised")}, small_data(), folder)["train"].folder


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"kind": 3}, "kind"),
        ({"kind": "other"}, "kind"),
        ({"spec": None}, "spec"),
        ({"spec": {"name": "cnn"}}, "spec.options"),
        ({"projector": "a"}, "projector"),
        ({"mean": [0.5, 0.5]}, "mean: must have 1 items"),
        ({"std": [0.0]}, "std.0"),
        ({"classes": ["a"]}, "classes: must have 3 items"),
        ({"classes": 3}, "classes"),
    ],
)
def test_a_wrong_description_is_named(change: dict[str, object], rule: str, model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "m")
    description = json.loads((folder / "model.json").read_text()) | change
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(SemisupError, match=r"model\.json: missing or damaged"):
        load_predictor(folder)
    files = json.loads((folder / "stage.json").read_text())["files"]
    signed(folder, files=files | {"model.json": file_digest(folder / "model.json")})
    with pytest.raises(SemisupError, match=rule) as caught:
        load_predictor(folder)
    assert str(folder / "model.json") in str(caught.value)


def test_flipped_weights_are_noticed_by_every_reader(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "m")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 64
    (folder / "model.safetensors").write_bytes(weights)
    cpu = torch.device("cpu")
    for read in (load_predictor, _load_pyfunc, lambda at: load_network(at, cpu), lambda at: load_features(at, cpu)):
        with pytest.raises(SemisupError, match=r"model\.safetensors: missing or damaged"):
            read(folder)
    (folder / "stage.json").unlink()
    with pytest.raises(SemisupError, match=r"no stage\.json"):
        load_predictor(folder)


def test_an_encoder_predicts_nothing(tmp_path: Path) -> None:
    done = run_stages({"train": train_stage("simclr")}, small_data(), tmp_path)["train"]
    with pytest.raises(SemisupError, match="an encoder without a classifier; fine-tune it first"):
        load_predictor(done.folder)


# Statistics of the input


def test_channel_statistics_are_those_of_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3)).astype(np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)))


def test_a_constant_channel_has_standard_deviation_one() -> None:
    assert channel_statistics(np.full((2, 8, 8, 1), 51, np.uint8)) == ([pytest.approx(0.2)], [1.0])


def test_everything_is_plain_data(tmp_path: Path) -> None:
    """Nothing that is read back can execute code: safetensors, JSON, PNG and an array without pickles."""
    done = run_stages({"train": train_stage("supervised")}, small_data(), tmp_path)["train"]
    names = sorted(done.record["files"])
    assert names == ["confusion.png", "example.npy", "model.json", "model.safetensors"]
    assert np.load(done.folder / "example.npy", allow_pickle=False).dtype == np.uint8
    assert sorted(path.name for path in done.folder.iterdir()) == [*names, "stage.json"]  # the checkpoint is gone


def test_images_may_be_read_only(tmp_path: Path) -> None:
    """As those of Fashion-MNIST are; warnings are errors here."""
    data = small_data()
    for images in (data.x_train, data.x_test):
        images.setflags(write=False)
    stages = {"train": train_stage("supervised"), "labels": {"kind": "relabel", "teacher": "train"}}
    run_stages(stages, data, tmp_path)
    probs = load_predictor(tmp_path / "train").predict(data.x_test)
    assert np.array_equal(probs[::-1], load_predictor(tmp_path / "train").predict(data.x_test[::-1]))
