"""`semisup check`: wrong labels on top of the list, copies, odd ones out."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from semisup.cli.app import app
from semisup.data import ImageData, load_data
from semisup.errors import SemisupError
from semisup.labeling.review import review
from semisup.labeling.wrong import likely_wrong, odd_ones, out_of_fold
from semisup.settings import DataConfig


def found_early(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Flip a tenth of the labels to others; return the part of them in the first 15% of the list."""
    rng = np.random.default_rng(seed)
    flipped = rng.permutation(len(labels))[: len(labels) // 10]
    given = labels.copy()
    given[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    probs = out_of_fold(features, given, np.arange(len(given)), seed)
    order = np.argsort(probs[np.arange(len(given)), given])
    return float(np.isin(flipped, order[: round(0.15 * len(given))]).mean())


def test_flipped_labels_of_digits_come_first(digits: ImageData) -> None:
    pixels = digits.x_train[:700].reshape(700, -1) / 255
    assert found_early(pixels, digits.y_train[:700], 0) >= 0.9


@pytest.mark.slow
def test_flipped_labels_of_fashion_mnist_come_first() -> None:
    data = load_data(DataConfig(source="fashion_mnist"))
    pixels = data.x_train[:3000].reshape(3000, -1) / 255
    assert found_early(pixels, data.y_train[:3000], 0) >= 0.8


def test_confident_learning_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.1, 0.9], [0.45, 0.55]])
    labels = np.array([0, 0, 0, 1, 1, 1])  # thresholds 0.6 and 0.783
    assert likely_wrong(probs, labels).tolist() == [False, False, True, False, False, False]


def test_copies_fall_into_one_fold() -> None:
    """A copy with the same wrong label must not vouch for it."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-3, 1, (30, 5)), rng.normal(3, 1, (30, 5))])
    labels = np.repeat([0, 1], 30)
    x[1:4] = x[0]
    labels[:4] = 1
    groups = np.arange(60)
    groups[:4] = 0
    assert out_of_fold(x, labels, groups, 0)[:4, 1].max() < 0.5


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 4], [0, 1, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1]])
def test_a_fold_that_leaves_one_class_to_learn_from_predicts_it(groups: list[int]) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    probs = out_of_fold(x, np.array([0, 0, 0, 0, 1, 1]), np.array(groups), 0)
    assert np.allclose(probs.sum(1), 1)


def test_a_class_of_one_picture_that_is_there_twice_is_not_looked_at(models: Path, tmp_path: Path) -> None:
    for name, pictures in {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7], "c": [8, 8]}.items():
        (tmp_path / "photos" / "labeled" / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            pixels = np.random.default_rng(picture).integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / "labeled" / name / f"{i}.png")
    folder, cache = tmp_path / "photos", str(tmp_path / "cache")
    found = review(folder, models / "encoder", tmp_path / "out", cache=cache, device="cpu")
    assert found.labels == 8 and "not looked at, with one labeled picture in the class: c" in found.notes
    shutil.rmtree(folder / "labeled" / "b")
    with pytest.raises(SemisupError, match="needs two classes with at least 2 different labeled pictures each"):
        review(folder, models / "encoder", tmp_path / "out", cache=cache, device="cpu")


def test_odd_ones() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 0.1, (50, 3)) + np.eye(3)[0], [[-1, 0.2, 0.3]]])
    distance, odd = odd_ones(x)
    assert odd[50] and odd.sum() < 5 and distance.argmax() == 50


def test_what_is_written(photos: Path, models: Path, tmp_path: Path) -> None:
    done = review(photos, models / "encoder", tmp_path / "out", cache=str(tmp_path / "cache"), device="cpu")
    assert done.labels == 12 and done.copies == 1 and not done.conflicts and not done.leaks
    with (tmp_path / "out" / "check_labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    trust = [float(row["confidence_in_label"]) for row in rows]
    assert len(rows) == 12 and trust == sorted(trust)
    assert sum(row["likely_wrong"] == "yes" for row in rows) == done.wrong
    images = (tmp_path / "out" / "check_images.csv").read_text()
    assert "unlabeled/copy.png,train,,near copies,unlabeled/00.png," in images
    assert (tmp_path / "out" / "check.html").read_text().count("<figure>") == 12


def test_results_of_another_check_are_replaced_with_a_word(photos: Path, models: Path, tmp_path: Path) -> None:
    words = ["check", str(photos), str(models / "encoder"), "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]
    first, second = (CliRunner().invoke(app, words) for _ in range(2))
    assert first.exit_code == second.exit_code == 0 and "replaced" not in first.output
    files = [str(tmp_path / name) for name in ("check_labels.csv", "check_images.csv", "check.html")]
    assert f"note: replaced: {', '.join(files)}" in second.output
    assert all(second.output.count(file) == 2 for file in files[:2]), "all that it writes"


@pytest.mark.parametrize("command", ["check", "label"])
def test_where_nothing_could_be_written_nothing_is_looked_at(
    command: str, photos: Path, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    (tmp_path / "other" / ("check.html" if command == "check" else "label_studio.xml")).mkdir(parents=True)
    for out, said in (
        ("out", "out: .*out cannot be a folder, .*out is a file"),
        ("other", "is a folder, where a file"),
    ):
        with pytest.raises(SemisupError, match=said):
            words = [command, str(photos), str(models / "encoder"), "--out", str(tmp_path / out)]
            CliRunner().invoke(app, [*words, "--cache", str(tmp_path / "cache")], catch_exceptions=False)
    assert not (tmp_path / "cache").exists(), "before any image is read"


def test_one_class_is_not_enough(photos: Path, models: Path, tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match="needs two classes with at least 2 different labeled pictures each"):
        review(photos / "unlabeled", models / "encoder", tmp_path, cache=str(tmp_path / "cache"), device="cpu")
