"""What a model sees in a folder's images: features and, of a classifier, predictions; computed once and kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semisup.augment import Normalize
from semisup.data import take
from semisup.data.decode import Fit
from semisup.data.store import Watch, unwatched
from semisup.errors import UNREADABLE
from semisup.files import replacing
from semisup.labeling.folder import Pictures
from semisup.records import file_digest
from semisup.stages.predictor import WEIGHTS, apply_network, describe, load_features, load_predictor, read_network

__all__ = ["Seen", "look", "model_images"]

BLOCK = 128
"""Images between two signs of progress."""
See = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Seen:
    """A model's view of images.

    Attributes:
        features: (N, D) float32.
        probs: (N, C) float32 of a classifier; None of an encoder.
        classes: names of the C classes.
    """

    features: NDArray[np.float32]
    probs: NDArray[np.float32] | None
    classes: list[str]


def model_images(model: Path) -> tuple[int, int, Fit]:
    """Return the side and channels of the images that a finished stage's network takes, and how they become squares.

    Raises:
        SemisupError: no model there.
    """
    spec = read_network(model).spec
    return spec.image_size, spec.in_channels, describe(model).get("fit", "crop")


def look(pictures: Pictures, model: Path, device: torch.device, watch: Watch = unwatched) -> Seen:
    """Return what a finished stage's network sees in all images; only those new to it are run through it.

    They are kept next to the decoded images, one file for each network, by the hash of an image's pixels.

    Args:
        pictures: of the network's own size.
        model: folder of the stage: a classifier, or an encoder.
        device: where the network runs.
        watch: shows progress.

    Raises:
        SemisupError: no model there, or its features are not finite.
    """
    description = describe(model)
    path = pictures.store / f"seen-{file_digest(model / WEIGHTS)[:16]}.npz"
    kept = _read(path)
    new = [i for i, name in enumerate(pictures.hashes) if name not in kept]
    if new:
        found = _run(pictures, np.array(new), model, description, device, watch)
        kept |= {pictures.hashes[i]: values for i, values in zip(new, found, strict=True)}
        _write(path, kept)
    values = np.stack([kept[name] for name in pictures.hashes])
    width = len(description["classes"]) if description["kind"] == "classifier" else 0
    features = values[:, : values.shape[1] - width]
    return Seen(features, values[:, -width:] if width else None, description["classes"])


def _read(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return what was kept, by the hash of an image; nothing of a damaged file, which is made anew."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            hashes, values = stored["hashes"].tolist(), stored["values"]
    except UNREADABLE:
        return {}
    sound = values.ndim == 2 and values.dtype == np.float32 and len(hashes) == len(values)
    return dict(zip(hashes, values, strict=True)) if sound else {}


def _write(path: Path, kept: dict[str, NDArray[np.float32]]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, hashes=np.array(list(kept)), values=np.stack(list(kept.values())))


def _run(
    pictures: Pictures,
    rows: NDArray[np.int64],
    model: Path,
    description: dict[str, Any],
    device: torch.device,
    watch: Watch,
) -> NDArray[np.float32]:
    """Return features and, of a classifier, probabilities (n, D + C) of some rows."""
    see = _encoder(model, description, device) if description["kind"] == "encoder" else _classifier(model, device)
    parts: list[NDArray[np.float32]] = []
    with watch("looking at images", len(rows)) as advance:
        for start in range(0, len(rows), BLOCK):
            parts.append(see(take(pictures.images, rows[start : start + BLOCK])))
            advance(sum(map(len, parts)))
    return np.concatenate(parts)


def _encoder(model: Path, description: dict[str, Any], device: torch.device) -> See:
    normalize = Normalize(description["mean"], description["std"]).to(device)
    return functools.partial(apply_network, load_features(model, device), normalize)


def _classifier(model: Path, device: torch.device) -> See:
    predictor = load_predictor(model, device)

    def see(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probs, features = predictor.predict_and_embed(images)
        return np.concatenate([features, probs], axis=1)

    return see
