"""Recipes and data as Python objects, and results as a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import semisup
from semisup.data import load_data
from semisup.errors import SemisupError
from tests.pipeline.pipeline_small import SMALL, small, statuses

RECIPE: dict[str, Any] = {
    **SMALL,
    "name": "given",
    "data": {"labels": 20},
    "stages": {"train": {"method": {"name": "supervised"}, "batch": {"labeled": 8}, "steps": 2}},
}


def arrays(n: int = 60) -> dict[str, np.ndarray]:
    data = load_data(small().data)
    return {"x_train": data.x_train[:n], "y_train": data.y_train[:n], "x_test": data.x_test, "y_test": data.y_test}


class Digits:
    """A map-style data set that counts how often its items are read."""

    classes = [f"digit {k}" for k in range(10)]

    def __init__(self, form: str) -> None:
        given = arrays()
        self.pixels, self.labels, self.form, self.read = given["x_train"], given["y_train"], form, 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        self.read += 1
        pixels = self.pixels[i]
        image = {
            "array": pixels,
            "pillow": Image.fromarray(pixels[..., 0]),
            "tensor": torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        }[self.form]
        return image, int(self.labels[i])


def test_arrays_and_a_mapping_are_a_recipe_that_runs_again(tmp_path: Path) -> None:
    result = semisup.run(RECIPE, ["seed=3"], data=arrays(), out=tmp_path / "out", quiet=True)
    assert (result.seed, result.data["source"], result.data["n_train"]) == (3, "npz", 60)
    again = semisup.run(tmp_path / "out" / "recipe.yaml", out=tmp_path / "out", quiet=True)
    assert statuses(again) == {"train": "reused"}
    assert len(list((tmp_path / ".semisup" / "data").iterdir())) == 1


@pytest.mark.parametrize("form", ["array", "pillow", "tensor"])
def test_a_data_set_is_read_once(form: str, tmp_path: Path) -> None:
    given = Digits(form)
    result = semisup.run(RECIPE, data=given, out=tmp_path / "out", quiet=True)
    assert given.read == 60
    expected = arrays()
    with np.load(next((tmp_path / ".semisup" / "data").iterdir())) as written:
        np.testing.assert_array_equal(written["x_train"], expected["x_train"])
        np.testing.assert_array_equal(written["y_train"], expected["y_train"])
    assert result.predictor().classes == Digits.classes


def test_parts_and_a_pair(tmp_path: Path) -> None:
    parts = {"train": Digits("array"), "test": torch.utils.data.TensorDataset(torch.rand(3, 1, 8, 8), torch.arange(3))}
    assert semisup.run(RECIPE, data=parts, out=tmp_path / "a", quiet=True).data["n_test"] == 3
    pair = tuple(arrays().values())[:2]
    assert semisup.run(RECIPE, data=pair, out=tmp_path / "b", quiet=True).data["n_test"] == 0


@pytest.mark.parametrize("none", [-1, None, float("nan"), pd.NA, pd.NaT])
def test_classes_may_be_objects_with_text(none: Any, tmp_path: Path) -> None:
    images, labels = tuple(arrays().values())[:2]
    given = np.array([f"digit {label}" for label in labels], object)
    given[40:] = none
    data = semisup.run(RECIPE, ["data.labels=all"], data=(images, given), out=tmp_path / "a", quiet=True).data
    assert (data["n_train"], data["n_labeled"]) == (60, 40)


def test_classes_may_be_bytes(tmp_path: Path) -> None:
    images, labels = tuple(arrays().values())[:2]
    given = images, np.array([b"one", b"two"])[labels % 2]
    run = semisup.run(RECIPE, ["data.labels=all"], data=given, out=tmp_path / "a", quiet=True)
    assert run.predictor().classes == ["one", "two"]


def wrong() -> list[tuple[Any, str]]:
    return list(_wrong())


def _wrong() -> Iterator[tuple[Any, str]]:
    yield [1, 2], "must be a mapping"
    yield {"test": Digits("array")}, "'train' is missing"
    yield {"train": []}, "'train' is empty"
    yield {"train": 5}, "'train' must be a torch Dataset, not int"
    yield "photos", "is for Python objects; a folder or file is the recipe's: data.path=photos"
    yield pd.DataFrame({"x": [1]}), "must be a mapping of arrays"
    yield torch.utils.data.TensorDataset(torch.rand(9, 1, 8, 8)), "'train' must be pairs of an image and a class"
    yield torch.utils.data.TensorDataset(torch.rand(2, 1, 8, 8), torch.eye(2)), "a class of a data set must be a whole"
    yield {"x_train": np.array([None]), "y_train": np.zeros(1)}, "x_train must be an array .* object; images of several"
    yield {"x_train": np.zeros((2, 8, 8)), "y_train": np.array([1, None])}, "y_train must .* not object; -1 is no label"
    yield {"x_train": np.zeros((4, 8, 8)), "y_train": np.zeros(4, int)}, "x_train: must be uint8"
    yield torch.utils.data.TensorDataset(torch.randn(9, 1, 8, 8), torch.arange(9)), "within 0 and 1"
    yield torch.utils.data.TensorDataset(torch.rand(1, 1, 8, 8), torch.tensor([torch.inf])), "a class .* whole number"
    yield {"train": Digits("array"), "tests": Digits("array")}, "data: unknown part 'tests'; did you mean 'test'"
    yield ([np.zeros((8, 8)), np.zeros((9, 9))], [0, 1]), "x_train must be an array, not items of several shapes"
    yield {"train": [(np.zeros((3, 8, 8), np.uint8), 0)]}, "not uint8 \\(3, 8, 8\\); transpose\\(1, 2, 0\\) moves"
    yield {"train": [(np.zeros((0, 8, 3), np.uint8), 0)]}, "image 0: has no pixels, 8 x 0"


@pytest.mark.parametrize(("given", "words"), wrong())
def test_wrong_data(given: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match=words):
        semisup.run(RECIPE, data=given, out=tmp_path / "out", quiet=True)


def test_results_as_a_table(tmp_path: Path) -> None:
    result = semisup.run(RECIPE, data=arrays(), out=tmp_path / "out", quiet=True)
    frame = result.to_frame()
    assert frame.index.tolist() == ["train"]
    assert frame.loc["train", "test/accuracy"] == result["train"].metrics["test/accuracy"]
    assert "test/confusion" not in frame
    page = result._repr_html_()
    assert "60 training images, 20 labels" in page and f"{result['train'].metrics['test/accuracy']:.4g}" in page
    dry = semisup.run(RECIPE, data=arrays(), out=tmp_path / "dry", quiet=True, dry_run=True)
    assert "A dry run" in dry._repr_html_() and dry.to_frame().empty
