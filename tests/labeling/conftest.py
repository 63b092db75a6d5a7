"""A folder of digits and two models of three steps: what every test of this folder needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import semisup
from semisup.config.load import load_recipe
from semisup.data import ImageData, load_data
from semisup.settings import DataConfig

RECIPE = """
name: tiny
device: cpu
tracking: {mlflow: false}
data: {source: digits, labels: 100}
model: {name: cnn, width: 4}
stages:
  encoder:
    method: {name: simclr}
    batch: {unlabeled: 32}
    steps: 3
  classifier:
    init: encoder
    method: {name: supervised}
    batch: {labeled: 32}
    steps: 3
  second:
    method: {name: supervised}
    batch: {labeled: 32}
    steps: 3
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished stages encoder, classifier and second."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.yaml").write_text(RECIPE)
    result = semisup.run(load_recipe(str(folder / "tiny.yaml")), out=folder / "out", quiet=True)
    assert result.out is not None
    return result.out


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data(DataConfig(source="digits"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    """Labeled 4 of each of the digits 0 to 2; 40 unlabeled; a copy of 00.png, brighter; one that is no image."""
    root = tmp_path_factory.mktemp("digits")
    for k in range(3):
        for i, row in enumerate(np.flatnonzero(digits.y_train == k)[:4]):
            write(root / f"labeled/{k}/{i}.png", digits.x_train[row])
    others = np.flatnonzero(digits.y_train < 3)[60:100]
    for i, row in enumerate(others):
        write(root / f"unlabeled/{i:02}.png", digits.x_train[row])
    write(root / "unlabeled/copy.png", (digits.x_train[others[0]] * 0.8 + 20).astype(np.uint8))
    (root / "unlabeled" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path)
