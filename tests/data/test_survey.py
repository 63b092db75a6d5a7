"""What a folder of images is like: near copies, sizes, colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from semisup.data import load_data
from semisup.data.entries import Entry
from semisup.data.survey import near_duplicates, shapes_of
from semisup.settings import DataConfig


def stripes(n: int) -> np.ndarray:
    """Smooth pictures (n, 32, 32, 3) that differ in many ways."""
    coarse = np.random.RandomState(0).randint(0, 256, (n, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in coarse])


def test_near_copies_are_found_and_nothing_else(tmp_path: Path) -> None:
    images = stripes(40)
    assert near_duplicates(images) == []
    twin = Image.fromarray(images[5])
    twin.save(tmp_path / "a.jpg", quality=60)
    brighter = ImageEnhance.Brightness(twin).enhance(0.8)
    smaller = twin.resize((20, 20)).resize((32, 32))
    copies = [np.asarray(Image.open(tmp_path / "a.jpg")), np.asarray(brighter), np.asarray(smaller)]
    assert near_duplicates(np.concatenate([images, copies])) == [(5, 40), (5, 41), (5, 42)]


def test_rows_of_a_later_part_are_compared_with_all_before_them() -> None:
    images = np.random.RandomState(1).randint(0, 256, (1103, 8, 8, 1), np.uint8)
    images[1102] = images[1]
    assert near_duplicates(images) == [(1, 1102)]


def test_flat_pictures_are_no_copies() -> None:
    images = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 90, 255)])
    assert near_duplicates(images) == []
    assert near_duplicates(images[:1]) == []


def test_different_digits_are_no_near_copies() -> None:
    data = load_data(DataConfig(source="digits"))
    pairs = near_duplicates(data.x_train)
    assert all(data.y_train[i] == data.y_train[j] for i, j in pairs)
    assert len(pairs) < 10


@pytest.mark.parametrize("color", [True, False])
def test_sizes_and_colors(color: bool, tmp_path: Path) -> None:
    entries = []
    for i, (width, height) in enumerate([(20, 30), (50, 40), (90, 60)]):
        name = f"{i}.png"
        Image.new("RGB", (width, height), (9, 80, 9) if color and i == 1 else (7, 7, 7)).save(tmp_path / name)
        entries.append(Entry("train", name, "a", 1, 1))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    entries.append(Entry("train", "bad.png", "a", 1, 1))
    found = shapes_of(tmp_path, entries)
    assert found is not None
    assert (found.sides, found.gray) == ((20, 40, 60), not color)
    assert shapes_of(tmp_path, entries[3:]) is None
