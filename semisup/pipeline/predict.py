"""Classify image files with a finished stage."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from semisup.engine import resolve_device
from semisup.errors import raise_all
from semisup.stages import load_predictor

__all__ = ["predict_files"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def predict_files(model: Path, images: Sequence[Path], device: str = "auto") -> str:
    """CSV text: path, class name, confidence; one row per image, folders searched at any depth.

    Images are converted to the model's channels and resized to its image size.

    Raises:
        SemisupError: no model there, or files that are missing or not images (all of them listed).
    """
    predictor = load_predictor(model, resolve_device(device))
    paths = [found for path in images for found in _expand(path)]
    problems, arrays = [], []
    for path in paths:
        try:
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image)  # phones store photographs on their side
                converted = upright.convert("L" if predictor.channels == 1 else "RGB")
                resized = converted.resize((predictor.image_size, predictor.image_size), Image.Resampling.BILINEAR)
                arrays.append(np.asarray(resized).reshape(predictor.image_size, predictor.image_size, -1))
        except FileNotFoundError:
            problems.append(f"{path}: no such file")
        except UnidentifiedImageError:
            problems.append(f"{path}: not an image")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
            problems.append(f"{path}: not a readable image ({error})")
    if not paths:
        problems.append(f"no images found; looked for {', '.join(sorted(SUFFIXES))}")
    raise_all(problems, "predict")
    probs = predictor.predict(np.stack(arrays))
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
