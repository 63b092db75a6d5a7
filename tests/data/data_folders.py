"""Folders of images that a test writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semisup.settings.schema import DataConfig


def picture(number: int, side: int = 24) -> np.ndarray:
    """Color noise, another for every number, (side, side, 3)."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write an image, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_root(root: Path, *, labeled: int = 6, unlabeled: int = 8, val: int = 0, test: int = 4) -> Path:
    """Write so many images of each part, those with labels in turn of the classes ant, bee and cat; all differ."""
    number = 0
    for part, count in (("labeled", labeled), ("unlabeled", unlabeled), ("val", val), ("test", test)):
        for i in range(count):
            folder = f"deep/{i % 2}" if part == "unlabeled" else ("ant", "bee", "cat")[i % 3]
            save(root / part / folder / f"{i:04}.png", picture(number))
            number += 1
    return root


def settings(root: Path, **others: object) -> DataConfig:
    """The settings of a folder of 24-pixel images, its store next to it."""
    values: dict[str, object] = {"source": "folder", "path": str(root), "size": 24, "cache": str(root.parent / "cache")}
    return DataConfig(**(values | others))  # type: ignore[arg-type]


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("needs Linux")
    return int(pages.read_text().split()[1]) * 4096
