"""Evaluating a finished stage. Only here do hidden labels and test images meet a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, StringConstraints, TypeAdapter
from torch import Tensor, nn

from semisup.evaluate import (
    classification_metrics,
    confusion_figure,
    confusion_matrix,
    fit_probe,
    fit_temperature,
    knn_accuracy,
    predict_logits,
    predictions_collapsed,
    pseudo_label_quality,
    reliability_figure,
)
from semisup.methods import PseudoLabels
from semisup.options import Fraction
from semisup.records import checked, read_json
from semisup.stages.artifact import write_json
from semisup.stages.context import StageContext

__all__ = [
    "calibrated",
    "collapse_metrics",
    "evaluate_classifier",
    "evaluate_encoder",
    "evaluate_test",
    "evaluate_validation",
    "hidden_labels",
    "oracle",
    "oracle_metrics",
    "quality_of_pseudo_labels",
    "unlabeled_quality",
]

BANK = 10_000
"""Most training images that kNN and the probe of a pretraining stage look at: about 10 s of features on two cores."""


def evaluate_classifier(
    context: StageContext, predictor: nn.Module, raw: nn.Module
) -> tuple[dict[str, Any], float, list[str]]:
    """Test metrics of the predictor (the EMA, where there is one) and of the raw weights.

    The test images are read once, for both. Without test images only the validation labels, if any, have something to
    say. Those also give the temperature, see `calibrated`; `test/*` is without it. Whether hardly more than one class
    is predicted is then asked of the validation images, else of the labeled training images: see `collapse_metrics`.

    Returns:
        The metrics, the predictor's temperature (1: not calibrated), and the names of the figures that were written.
    """
    data = context.data
    metrics, temperature, files = calibrated(context, predictor)
    if not len(data.x_test):
        return metrics | _collapse_without_test(context, predictor), temperature, files
    y = torch.from_numpy(data.y_test)
    logits = predict_logits(_SideBySide(predictor, raw), context.clean_batches(data.x_test)).cpu()
    metrics |= evaluate_test(context, logits[:, 0])
    for name, value in classification_metrics(logits[:, 1], y, data.num_classes).items():
        metrics[f"test_raw/{name}"] = value
    if files:
        metrics |= _compared(context, logits[:, 0], y, temperature, "test")
    return metrics, temperature, [*files, "confusion.png"]


def calibrated(context: StageContext, predictor: nn.Module) -> tuple[dict[str, Any], float, list[str]]:
    """Return validation metrics and the temperature that the validation labels give, see `fit_temperature`.

    Those labels trained nothing. Without them nothing honest is left: of the images whose labels the network was
    trained on it is always too sure, and whatever is fitted on features that were trained on those labels is, too;
    cross-fitting (benchmarks/calibration.py) is no better than nothing. The temperature is 1 then. `calibration/labels`
    is the number of labels; ECE and NLL before and after are of the test set as `test/*` and `test_calibrated/*`, and
    of the labels that it was fitted on as `calibration/*`.
    """
    images, rows, y = context.data.validation(context.budget.validation)
    if not len(rows):
        return {}, 1.0, []
    logits, truth = predict_logits(predictor, context.clean_batches(images, rows)).cpu(), torch.from_numpy(y)
    found = classification_metrics(logits, truth, context.data.num_classes)
    temperature = fit_temperature(logits, truth)
    after = _compared(context, logits, truth, temperature, "validation")
    metrics = {f"validation/{name}": found[name] for name in ("accuracy", "nll")}
    metrics |= {"calibration/temperature": temperature, "calibration/labels": len(rows)}
    for name in ("ece", "nll"):
        metrics |= {f"calibration/{name}_before": found[name]}
        metrics |= {f"calibration/{name}_after": after[f"validation_calibrated/{name}"]}
    return metrics, temperature, ["reliability.png"]


def _compared(context: StageContext, logits: Tensor, y: Tensor, temperature: float, which: str) -> dict[str, Any]:
    """Return what the temperature makes of NLL, ECE, Brier and reliability; writes `reliability.png`, before and after.

    The metrics' names begin with `<which>_calibrated/`.
    """
    classes = context.data.num_classes
    before = classification_metrics(logits, y, classes)
    after = classification_metrics(logits / temperature, y, classes)
    diagrams = [("raw", before["reliability"], before["ece"])]
    diagrams.append((f"T = {temperature:.2f}", after["reliability"], after["ece"]))
    reliability_figure(diagrams, f"{len(y):,} {which} images", context.folder / "reliability.png")
    return {f"{which}_calibrated/{name}": after[name] for name in ("nll", "ece", "brier", "reliability")}


def evaluate_test(context: StageContext, logits: Tensor) -> dict[str, Any]:
    """Test metrics of logits (M, num_classes) for the test images, on the CPU; writes `confusion.png`."""
    data = context.data
    y = torch.from_numpy(data.y_test)
    metrics = {f"test/{name}": value for name, value in classification_metrics(logits, y, data.num_classes).items()}
    matrix = confusion_matrix(logits.argmax(1), y, data.num_classes)
    confusion_figure(matrix, data.classes, context.folder / "confusion.png")
    return metrics | {"test/confusion": matrix.tolist()} | collapse_metrics(matrix)


def collapse_metrics(matrix: Tensor) -> dict[str, float]:
    """Return `collapsed/most_frequent` and `collapsed/majority_rate` of a confusion matrix; nothing of a sound one.

    See `semisup.evaluate.metrics.predictions_collapsed`.
    """
    counts = matrix.double()
    true, predicted = counts.sum(dim=1), counts.sum(dim=0)
    most, majority = float(predicted.max() / counts.sum()), float(true.max() / counts.sum())
    if not predictions_collapsed((counts.diagonal() / true).tolist(), most, majority):
        return {}
    return {"collapsed/most_frequent": most, "collapsed/majority_rate": majority}


def _collapse_without_test(context: StageContext, predictor: nn.Module) -> dict[str, float]:
    images, rows, y = context.data.validation(context.budget.validation)
    if not len(rows):
        images, rows = context.data.x_train, context.budget.index[:BANK]
        y = context.data.y_train[rows]
    if not len(rows):  # a student of images without any label
        return {}
    predicted = predict_logits(predictor, context.clean_batches(images, rows)).cpu().argmax(1)
    return collapse_metrics(confusion_matrix(predicted, torch.from_numpy(y), context.data.num_classes))


def evaluate_validation(context: StageContext, predict: Callable[[Iterator[Tensor]], Tensor]) -> dict[str, float]:
    """Return accuracy and NLL of what `predict` makes of the validation images' clean batches: logits (N, classes)."""
    images, rows, y = context.data.validation(context.budget.validation)
    if not len(rows):
        return {}
    logits = predict(context.clean_batches(images, rows))
    found = classification_metrics(logits, torch.from_numpy(y), context.data.num_classes)
    return {f"validation/{name}": found[name] for name in ("accuracy", "nll")}


_CURVE: TypeAdapter[dict[str, float]] = TypeAdapter(
    Annotated[dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")], Fraction], Field(min_length=1)]
)


def oracle(context: StageContext, path: Path) -> Callable[[int, nn.Module], None]:
    """Return a function that notes the test accuracy of a step's predictor in the JSON file `path`, steps -> accuracy.

    The file is replaced atomically and survives a kill; a resumed stage writes the same numbers again.
    """
    y = torch.from_numpy(context.data.y_test)

    def look(step: int, predictor: nn.Module) -> None:
        curve = _read_curve(path) if path.exists() else {}
        logits = predict_logits(predictor, context.clean_batches(context.data.x_test)).cpu()
        write_json(path, {**curve, str(step): float((logits.argmax(1) == y).double().mean())})

    return look


def _read_curve(path: Path) -> dict[str, float]:
    return checked(_CURVE, read_json(path), f"{path}: damaged")


def oracle_metrics(path: Path) -> dict[str, Any]:
    """Return what an oracle would choose: the best test accuracy of a stage and the first step that had it."""
    curve = _read_curve(path)
    step = max(sorted(curve, key=int), key=lambda name: curve[name])
    return {"oracle/accuracy": curve[step], "oracle/step": int(step)}


class _SideBySide(nn.Module):
    """Two networks' logits (N, 2, C) from one reading of the images; run once where the two are one."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        return torch.stack([first, first if self.second is self.first else self.second(images)], dim=1)


def hidden_labels(context: StageContext) -> Tensor:
    """Return the training images' true classes (N,), on the CPU; -1 where nobody knows, or training was given it."""
    hidden = torch.tensor(context.data.y_train)
    for given in (context.budget.index, context.budget.validation):
        hidden[torch.from_numpy(given)] = -1  # a label that was given is not a pseudo-label
    return hidden


def unlabeled_quality(context: StageContext, predictor: nn.Module, threshold: float) -> dict[str, float]:
    """How many of the images without a label the predictor would label at `threshold`, and how well.

    Labeled images are left out, as are those whose true label nobody knows. At most 10,000 images, the first ones.
    """
    hidden = hidden_labels(context)
    rows = torch.nonzero(hidden >= 0).flatten()[:BANK]
    if not len(rows):
        return {}
    probs = predict_logits(predictor, context.clean_batches(context.data.x_train, rows.numpy())).softmax(1)
    confidence, labels = probs.max(1)
    quality = pseudo_label_quality(labels, confidence >= threshold, hidden[rows].to(labels.device))
    return {f"pseudo_labels/{name}": float(value) for name, value in quality.items()}


def quality_of_pseudo_labels(context: StageContext) -> Callable[[PseudoLabels], dict[str, Tensor]]:
    """Return a function that evaluates a step's pseudo-labels by the hidden labels, which the method never sees.

    It stays on the device. The names are not those of `unlabeled_quality`, which is of all images.
    """
    hidden = hidden_labels(context).to(context.device)

    def evaluate(guess: PseudoLabels) -> dict[str, Tensor]:
        quality = pseudo_label_quality(guess.labels, guess.mask, hidden[guess.index])
        return {f"pseudo_labels_of_batch/{name}": value for name, value in quality.items()}

    return evaluate


def evaluate_encoder(context: StageContext, encoder: nn.Module) -> dict[str, Any]:
    """Weighted kNN and a linear probe on frozen features, asked about the validation images, else the test images.

    A diagnostic of the representation: both read the true labels of up to 10,000 training images, whatever the label
    budget of the recipe. They are not few-label results, and their names say `probe`, not `test`. `probe/validation`
    is the number of validation images; 0: the test images were asked about, which decide nothing, but are looked at.
    """
    data = context.data
    images, rows, y = data.validation(context.budget.validation)
    validated = len(rows)
    if not validated:
        images, rows, y = data.x_test, np.arange(len(data.x_test)), data.y_test
    known = np.flatnonzero(data.y_train >= 0)
    if data.x_val is None:
        known = np.setdiff1d(known, context.budget.validation)
    if not len(known) or not len(rows):
        return {}
    if len(known) > BANK:
        known = np.sort(np.random.default_rng(context.recipe.seed).choice(known, BANK, replace=False))
    bank = predict_logits(encoder, context.clean_batches(data.x_train, known)).cpu()
    queries = predict_logits(encoder, context.clean_batches(images, rows)).cpu()
    y_bank, y_asked = torch.from_numpy(data.y_train[known]), torch.from_numpy(y)
    guesses = fit_probe(bank, y_bank, context.recipe.seed, folds=2).logits(queries, data.num_classes).argmax(1)
    return {
        "knn/accuracy": knn_accuracy(bank, y_bank, queries, y_asked, num_classes=data.num_classes),
        "probe/accuracy": float((guesses == y_asked).double().mean()),
        "probe/validation": validated,
    }
