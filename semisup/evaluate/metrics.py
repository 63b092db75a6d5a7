"""How good a finished classifier is, from its logits on a labeled set. Reads values on the host: not for step code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError

__all__ = [
    "class_means",
    "classification_metrics",
    "confusion_matrix",
    "expected_calibration_error",
    "predictions_collapsed",
    "reliability",
    "wilson",
]


def classification_metrics(logits: Tensor, y: Tensor, num_classes: int) -> dict[str, Any]:
    """Return accuracy, in the ways that classes of unequal size call for, and calibration of N predictions, in float64.

    Args:
        logits: (N, num_classes), finite, N >= 1.
        y: (N,) int64 true classes in [0, num_classes).
        num_classes: C.

    Returns:
        `accuracy` in [0, 1]; `balanced_accuracy` and `macro_f1`, see `class_means`; `majority_rate`, the share
        of the largest class, which is the accuracy of always naming it; `most_frequent`, the share of the predictions
        that name the class that is named most often; `nll`, the mean negative log-likelihood in nats; `ece` in [0, 1],
        see `expected_calibration_error`; `brier`, the mean of `||p - onehot||^2` in [0, 2];
        `per_class_accuracy`, a list of C floats with NaN for a class without samples; and `reliability`, see
        `reliability`.

    Raises:
        SemisupError: shapes that do not match, a label out of range, or logits that are not finite.
    """
    if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] != num_classes:
        raise SemisupError(f"logits must be (N, {num_classes}) with N >= 1, got shape {tuple(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise SemisupError("logits must be finite: the network that made them has diverged")
    logits = logits.detach().double()
    y = y.to(logits.device)
    probs = F.softmax(logits, dim=1)
    confidence, predictions = probs.max(dim=1)
    matrix = confusion_matrix(predictions, y, num_classes).double()  # checks y; double before it divides
    correct = predictions == y
    balanced, macro_f1 = class_means(matrix)
    return {
        "accuracy": float(correct.double().mean()),
        "balanced_accuracy": balanced,
        "macro_f1": macro_f1,
        "majority_rate": float(matrix.sum(dim=1).max() / len(y)),
        "most_frequent": float(matrix.sum(dim=0).max() / len(y)),
        "nll": float(F.cross_entropy(logits, y)),
        "ece": expected_calibration_error(confidence, correct),
        "brier": float((probs - F.one_hot(y, num_classes)).square().sum(dim=1).mean()),
        "per_class_accuracy": (matrix.diagonal() / matrix.sum(dim=1)).tolist(),  # 0 / 0 is NaN
        "reliability": reliability(confidence, correct),
    }


def confusion_matrix(predictions: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Return the (C, C) int64 counts: row = true class, column = predicted class.

    Args:
        predictions: (N,) int64 in [0, num_classes).
        y: (N,) int64 in [0, num_classes).
        num_classes: C.

    Raises:
        SemisupError: shapes that do not match or a class out of range.
    """
    if predictions.ndim != 1 or predictions.shape != y.shape:
        raise SemisupError(
            f"predictions and y must both be (N,), got shapes {tuple(predictions.shape)} and {tuple(y.shape)}"
        )
    for name, values in (("predictions", predictions), ("y", y)):
        if bool(((values < 0) | (values >= num_classes)).any()):
            low, high = int(values.min()), int(values.max())
            raise SemisupError(f"{name} must lie in [0, {num_classes}), got values from {low} to {high}")
    counts = torch.bincount(y * num_classes + predictions, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def class_means(matrix: Tensor) -> tuple[float, float]:
    """Return balanced accuracy, the mean recall, and macro F1, the mean of 2 TP / (2 TP + FP + FN), of the classes.

    As scikit-learn has them: recalls over the classes that have a sample, F1 over those that have one or were predicted
    (Opitz and Burst, arXiv:1911.03347, eq. 1 of macro F1: the mean of the classes' F1, not the F1 of means).

    Args:
        matrix: (C, C) counts as of `confusion_matrix`, in floating point.
    """
    true, predicted, hits = matrix.sum(dim=1), matrix.sum(dim=0), matrix.diagonal()
    there, either = true > 0, true + predicted > 0
    recall = hits[there] / true[there]
    f1 = 2 * hits[either] / (true + predicted)[either]
    return float(recall.mean()), float(f1.mean())


def predictions_collapsed(recalls: Sequence[float | None], most_frequent: float | None, majority: float | None) -> bool:
    """Return whether a classifier names hardly more than one class, whatever its accuracy.

    Two things together: the class that it names most often takes at least half of what is not of the largest class
    (share >= (1 + majority) / 2), and the other classes are found less than half as often as by guessing: their mean
    recall is below 1 / (2 C). The thresholds are ours. Where the share is not known, the recalls alone decide.

    Args:
        recalls: of each class, None (or NaN) for one without a test image; fewer than two known ones: False.
        most_frequent: share of the predictions that name the class that is named most often.
        majority: share of the largest class.
    """
    known = sorted(recall for recall in recalls if recall is not None and recall == recall)
    if len(known) < 2:
        return False
    if most_frequent is not None and majority is not None and most_frequent < (1 + majority) / 2:
        return False
    others = known[:-1]
    return sum(others) / len(others) < 1 / (2 * len(recalls))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share of `count` images (Wilson 1927): of these images, not of other label draws."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Return the sum over bins of `(n_b / N) * |accuracy_b - mean confidence_b|`, in [0, 1].

    Naeini et al., AAAI 2015; Guo et al., arXiv:1706.04599, eq. 3. Equal-width bins (lo, hi] over [0, 1].

    Args:
        confidence: (N,) probability of the predicted class, N >= 1.
        correct: (N,) bool, whether the prediction was right.
        bins: number of bins.

    Raises:
        SemisupError: shapes that do not match, or no sample.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise SemisupError(
            f"confidence and correct must both be (N,) with N >= 1, "
            f"got shapes {tuple(confidence.shape)} and {tuple(correct.shape)}"
        )
    # n_b * |acc_b - conf_b| = |sum over the bin of (correct - confidence)|: no bin can divide by 0.
    _, confidences, hits = _bin_sums(confidence.detach().double(), correct, bins)
    return float((hits - confidences).abs().sum() / len(confidence))


def reliability(confidence: Tensor, correct: Tensor, bins: int = 15) -> list[list[float]]:
    """Return the reliability diagram, of the bins of `expected_calibration_error`.

    For each bin how many samples it has, their mean confidence and their accuracy; three zeros for an empty bin.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool, whether the prediction was right.
        bins: number of bins.
    """
    counts, confidences, hits = _bin_sums(confidence.detach().double(), correct, bins)
    filled = counts.clamp(min=1)
    return torch.stack([counts, confidences / filled, hits / filled], dim=1).tolist()


def _bin_sums(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of 1, confidence and correctness (each (bins,) float64) over equal-width bins (lo, hi] of [0, 1]."""
    inner_edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    index = torch.bucketize(confidence, inner_edges)  # right=False: an edge belongs to the bin below it
    sums = torch.zeros(bins, 3, dtype=torch.float64, device=confidence.device)
    values = torch.stack([torch.ones_like(confidence), confidence, correct.double()], dim=1)
    counts, confidences, hits = sums.index_add_(0, index, values).unbind(1)
    return counts, confidences, hits
