"""What a model sees in a folder's images: features and, of a classifier, predictions; computed once and kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from semisup.augment import Normalize
from semisup.data.decode import Fit
from semisup.data.store import Watch, unwatched
from semisup.errors import UNREADABLE, SemisupError
from semisup.files import replacing
from semisup.labeling.folder import Pictures
from semisup.stages.context import clean_batches
from semisup.stages.predictor import describe, load_features, load_network, read_network

__all__ = ["Seen", "look", "model_images"]

WEIGHTS = "model.safetensors"


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
    path = pictures.store / f"seen-{_weights_hash(model)}.npz"
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


def _weights_hash(model: Path) -> str:
    with (model / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


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


class _Both(nn.Module):
    """Features and probabilities next to each other, from one forward."""

    def __init__(self, network: Any, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        features = self.network.features(images)
        return torch.cat([features.float(), (self.network.head(features).float() / self.temperature).softmax(1)], dim=1)


def _run(
    pictures: Pictures,
    rows: NDArray[np.int64],
    model: Path,
    description: dict[str, Any],
    device: torch.device,
    watch: Watch,
) -> NDArray[np.float32]:
    """Return features and probabilities (n, D + C) of some rows."""
    encoder = description["kind"] == "encoder"
    network = (
        load_features(model, device)
        if encoder
        else _Both(load_network(model, device), description.get("temperature", 1.0))
    )
    normalize = Normalize(description["mean"], description["std"]).to(device)
    parts: list[Tensor] = []
    with watch("looking at images", len(rows)) as advance, torch.inference_mode():
        for batch in clean_batches(pictures.images, normalize, device, rows):
            parts.append(network(batch).float().cpu())
            advance(sum(map(len, parts)))
    values: NDArray[np.float32] = torch.cat(parts).numpy()
    if not np.isfinite(values).all():
        raise SemisupError(f"{model}: its features of {pictures.root} are not finite; the network has diverged")
    return values
