"""The images that a classifier is most wrong about, and those it is least sure of, as pictures within a page."""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semisup.data import ImageData, LabelBudget, take
from semisup.stages import Predictor

__all__ = ["Doubt", "Doubts", "find_doubts"]

SHOWN = 24
FIRST = 64
"""Images whose time says how long the others will take."""
MOST = 10_000


@dataclass(frozen=True)
class Doubt:
    """An image as a `data:` address, the predicted class and its probability, and the true class where it is known."""

    picture: str
    predicted: str
    confidence: float
    actual: str | None


@dataclass(frozen=True)
class Doubts:
    """What was looked at ("test", "validation" or "unlabeled"), how many of it, and what stands out."""

    part: str
    count: int
    mistakes: list[Doubt]
    doubtful: list[Doubt]


def find_doubts(predictor: Predictor, data: ImageData, budget: LabelBudget, seconds: float | None) -> Doubts | None:
    """Look at the test images, else the validation images, else the unlabeled ones; at most 10,000.

    Args:
        predictor: the finished classifier.
        data: of the run.
        budget: its labels.
        seconds: the most that it may take; None: however long.

    Returns:
        None where there are no images, or it would take longer.
    """
    part, images, rows, labels = _looked_at(data, budget)
    rows, labels = rows[:MOST], labels[:MOST]
    if not len(rows):
        return None
    started = time.perf_counter()
    parts = [predictor.predict_proba(take(images, rows[:FIRST]))]
    if seconds is not None and (time.perf_counter() - started) * len(rows) / FIRST > seconds:
        return None
    for start in range(FIRST, len(rows), 512):
        parts.append(predictor.predict_proba(take(images, rows[start : start + 512])))
    probabilities = np.concatenate(parts)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    known = labels >= 0
    wrong = np.flatnonzero(known & (predicted != labels))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
    unsure = np.argsort(confidence, kind="stable")[:SHOWN]

    def shown(places: NDArray[np.int64]) -> list[Doubt]:
        return [
            Doubt(
                _address(take(images, rows[place : place + 1])[0]),
                data.classes[predicted[place]],
                float(confidence[place]),
                data.classes[labels[place]] if known[place] else None,
            )
            for place in places.tolist()
        ]

    return Doubts(part, len(rows), shown(wrong), shown(unsure))


def _looked_at(
    data: ImageData, budget: LabelBudget
) -> tuple[str, NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return a part's name, its images, which of them, and their classes, -1 where nobody may know."""
    if len(data.x_test):
        return "test", data.x_test, np.arange(len(data.x_test)), data.y_test
    images, rows, labels = data.validation(budget.validation)
    if len(rows):
        return "validation", images, rows, labels
    rows = np.setdiff1d(np.arange(len(data.x_train)), budget.index)
    return "unlabeled", data.x_train, rows, np.full(len(rows), -1)


def _address(pixels: NDArray[np.uint8]) -> str:
    """Return an image (h, w, c) as the address of a PNG file within the page."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
