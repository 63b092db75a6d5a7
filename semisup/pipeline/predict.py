"""Classify image files with a finished stage."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semisup.data.decode import SUFFIXES, BadImageError, decode
from semisup.engine import resolve_device
from semisup.errors import raise_all
from semisup.stages import load_predictor

__all__ = ["predict_files"]

CHUNK = 512
"""Images in memory at a time."""


def predict_files(model: Path, images: Sequence[Path], device: str = "auto") -> str:
    """CSV text: path, class name, confidence; one row per image, folders searched at any depth.

    Images are read as training reads a folder's, see :func:`semisup.data.decode.decode`.

    Raises:
        SemisupError: no model there, or files that are missing or not images (all of them listed).
    """
    predictor = load_predictor(model, resolve_device(device))
    paths = [found for path in images for found in _expand(path)]
    problems: list[str] = [] if paths else [f"no images found; looked for {', '.join(SUFFIXES)}"]
    parts = []
    for start in range(0, len(paths), CHUNK):
        arrays = []
        for path in paths[start : start + CHUNK]:
            try:
                arrays.append(decode(path, predictor.image_size, predictor.channels))
            except BadImageError as error:
                problems.append(f"{path}: {error}")
        if not problems:
            parts.append(predictor.predict(np.stack(arrays)))
    raise_all(problems, "predict")
    probs = np.concatenate(parts)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "confidence"])
    for path, row in zip(paths, probs, strict=True):
        writer.writerow([path, predictor.classes[int(row.argmax())], f"{row.max():.4f}"])
    return text.getvalue()


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(found for found in path.rglob("*") if found.suffix.lower() in SUFFIXES)
    return [path]
