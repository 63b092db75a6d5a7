"""A finished classifier with all that other programs would have to do around it: bytes in, probabilities out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from semisup._version import __version__
from semisup.errors import SemisupError
from semisup.evaluate import probabilities
from semisup.records import read_record, verify
from semisup.stages.predictor import EXAMPLES, Predictor, describe, load_predictor
from semisup.stages.squares import square
from semisup.tracking.packages import read_images

__all__ = [
    "INPUT",
    "OUTPUTS",
    "Deployed",
    "Facts",
    "check_same",
    "dynamic_shapes",
    "examples",
    "facts_of",
    "load_deployed",
]

INPUT, OUTPUTS = "images", ("probabilities", "embeddings")
"""Names in the exported files."""
TOLERANCE = 1e-4
"""By which an exported file may differ from torch, absolute and relative."""


class Deployed(nn.Module):
    """Images (n, h, w, C) uint8 of any size to calibrated probabilities (n, classes) and embeddings (n, features).

    Images that are no squares become some as in training, see `semisup.stages.squares`.

    Args:
        predictor: on the CPU.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network = predictor.network
        self.normalize = predictor.normalize
        self.size, self.fit, self.temperature = predictor.image_size, predictor.fit, predictor.temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and embeddings."""
        scaled = square(images, self.size, self.fit)
        embeddings = self.network.features(self.normalize(scaled / 255))
        return probabilities(self.network.head(embeddings), self.temperature), embeddings


@dataclass(frozen=True)
class Facts:
    """What an exported file and its model card say of a model.

    Attributes:
        record: of its stage.
        description: of its network.
        metadata: short texts that travel in the file.
    """

    record: dict[str, Any]
    description: dict[str, Any]
    metadata: dict[str, str]


def facts_of(stage: Path) -> Facts:
    """Read what a finished stage says of itself.

    Raises:
        SemisupError: no model there, or it classifies nothing.
    """
    description = describe(stage)
    if description["kind"] != "classifier":
        raise SemisupError(f"{stage}: an encoder without a classifier; fine-tune it first")
    record = read_record(stage)
    spec = description["spec"]
    origins = "; ".join(record.get("origins", []))
    metadata = {
        "classes": json.dumps(description["classes"]),
        "channels": str(spec["in_channels"]),
        "fit": description.get("fit", "crop"),
        "image_size": str(spec["image_size"]),
        "temperature": f"{description.get('temperature', 1.0):.6g}",
        "data": str(record.get("data", {}).get("source", "unknown")),
        "data_hash": str(record.get("data", {}).get("hash", "unknown")),
        "license": origins or "trained from random weights: no license but that of the data",
        "model": spec["name"],
        "fingerprint": record["fingerprint"],
        "semisup_version": __version__,
    }
    return Facts(record, description, metadata)


def examples(stage: Path) -> NDArray[np.uint8]:
    """Return a stage's two training images (2, size, size, C) uint8.

    Raises:
        SemisupError: they are missing or damaged.
    """
    verify(stage, read_record(stage), (EXAMPLES,))
    return read_images(stage / EXAMPLES)


def load_deployed(stage: Path) -> tuple[Predictor, Deployed]:
    """Return a stage's predictor on the CPU, and the same for export."""
    predictor = load_predictor(stage)
    return predictor, Deployed(predictor).eval()


def dynamic_shapes() -> dict[str, Any]:
    """Return which sides of the input are free, as torch.export has it: images, height and width."""
    dim = torch.export.Dim
    return {INPUT: {0: dim("n"), 1: dim("height", min=2), 2: dim("width", min=2)}}


def check_same(
    run: Any, predictor: Predictor, module: Deployed, images: NDArray[np.uint8], subject: str
) -> dict[str, float]:
    """Compare an exported file with torch: on real images, one at a time and together, and on other sizes.

    Args:
        run: images to probabilities and embeddings, by the exported file.
        predictor: by torch; it has to agree on images of the network's size.
        module: by torch; it has to agree on images of another size.
        images: real ones of the network's size.
        subject: names the file.

    Returns:
        The largest differences, by output.

    Raises:
        SemisupError: one is above `TOLERANCE`.
    """
    wide = np.ascontiguousarray(np.repeat(np.repeat(images[:2], 3, axis=1), 4, axis=2)[:, 1:, 2:])
    worst = dict.fromkeys(OUTPUTS, 0.0)
    for given in (images, images[:1], wide):
        if given is wide:
            with torch.inference_mode():
                expected = [value.numpy() for value in module(torch.from_numpy(given))]
        else:
            expected = [predictor.predict_proba(given), predictor.embed(given)]
        for name, found, wanted in zip(OUTPUTS, run(given), expected, strict=True):
            worst[name] = max(worst[name], float(np.abs(found - wanted).max()))
            if not np.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                raise SemisupError(f"{subject}: its {name} differ from torch's by {worst[name]:.2g}, so it is not kept")
    return worst
