"""Linear probes: how much of the classes a linear classifier can read off frozen features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semisup.errors import SemisupError

__all__ = ["LinearProbe", "fit_probe", "linear_probe"]

FOLDS = 5
PROBE_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Choices of C of `fit_probe`, the inverse of the weight decay."""
TINIEST = 1e-12
"""Probability of a class that had no label."""

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # scikit-learn's C, the inverse of the weight decay
MAX_ITER = 1000
MIN_PER_CLASS = 5  # fewer leave no sensible fifth for validation: take C = 1


@dataclass(frozen=True)
class LinearProbe:
    """A logistic regression on standardized features, and how it was chosen."""

    model: Any
    """Of scikit-learn: standardization and regression."""
    strength: float
    """C, the inverse of the weight decay."""
    folds: int
    """Parts of the cross-validation; 0: too few labels for one."""
    cv_accuracy: float | None
    """Accuracy on the training samples, each predicted without itself; None without cross-validation. As the strength
    was chosen by the same predictions, a little too good."""
    converged: bool
    """False: the fit stopped at 1000 iterations."""

    def logits(self, features: Tensor, num_classes: int) -> Tensor:
        """Log-probabilities (M, num_classes) float64, on the CPU, of features (M, D).

        Raises:
            SemisupError: another width than that of the training features, or features that are not finite.
        """
        x = _as_array("features", features)
        if x.shape[1] != self.model.n_features_in_:
            raise SemisupError(f"features must be (M, {self.model.n_features_in_}), got shape {tuple(x.shape)}")
        probs = np.zeros((len(x), num_classes))
        probs[:, self.model.classes_] = self.model.predict_proba(x)
        return torch.from_numpy(np.log(np.maximum(probs, TINIEST)))

    def linear(self, num_classes: int) -> dict[str, Tensor]:
        """Return the same as one layer, float64: logits are `features @ weight.T + bias`, up to a number per row.

        Returns:
            `weight` (num_classes, D) and `bias` (num_classes,), -inf for a class without a label.
        """
        scaler, regression = self.model[0], self.model[-1]
        coefficients, intercepts = regression.coef_, regression.intercept_
        if len(coefficients) == 1:  # of two classes scikit-learn keeps the second one's
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
        weight = np.zeros((num_classes, coefficients.shape[1]))
        bias = np.full(num_classes, -np.inf)
        weight[regression.classes_] = coefficients / scaler.scale_
        bias[regression.classes_] = intercepts - weight[regression.classes_] @ scaler.mean_
        return {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}


def fit_probe(features: Tensor, labels: Tensor, seed: int) -> LinearProbe:
    """Fit a logistic regression whose regularization is chosen by cross-validation inside the given labels.

    C is the one of five from 0.001 to 10 with the least log loss over five stratified folds (as many as the rarest
    class has samples, if that is fewer), the smallest of equals. Accuracy would decide by one or two samples where
    labels are few: on SimCLRv2's features of Fashion-MNIST it took C = 0.1 or 1 or 100 for three draws of 40 labels. A
    class with a single sample leaves no fold without it: C = 1. 6,000 samples of 64 features take about 10 s on
    one core.

    Args:
        features: (N, D) float.
        labels: (N,) int64, at least two classes, none negative.
        seed: of the folds.

    Raises:
        SemisupError: shapes that do not match, unlabeled samples, fewer than two classes, or features not finite.
    """
    x, y = _as_arrays("train", features, labels)
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        raise SemisupError(f"a linear probe needs at least two classes in train_labels, got {len(classes)}")
    folds, strength, cv_accuracy = int(min(FOLDS, counts.min())), 1.0, None
    if folds < 2:
        folds = 0
    else:
        parts = np.array_split(_stratified_order(y, np.random.default_rng(seed)), folds)
        results = [_cross_validate(x, y, parts, c) for c in PROBE_STRENGTHS]
        best = int(np.argmin([loss for loss, _ in results]))
        strength, cv_accuracy = PROBE_STRENGTHS[best], results[best][1]
    model, converged = _fit(x, y, strength)
    return LinearProbe(model, strength, folds, cv_accuracy, converged)


def _cross_validate(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.int64], parts: list[npt.NDArray[np.intp]], strength: float
) -> tuple[float, float]:
    """Mean log loss and accuracy of all samples, each part predicted by a model of the others.

    Every model knows every class: each part lacks at least one sample of it.
    """
    losses, hits = [], []
    for i, part in enumerate(parts):
        rest = np.concatenate([other for j, other in enumerate(parts) if j != i])
        model, _ = _fit(x[rest], y[rest], strength)
        probs = model.predict_proba(x[part])
        truth = np.searchsorted(model.classes_, y[part])
        losses.append(-np.log(np.maximum(probs[np.arange(len(part)), truth], TINIEST)))
        hits.append(probs.argmax(1) == truth)
    return float(np.concatenate(losses).mean()), float(np.concatenate(hits).mean())


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    seed: int,
    *,
    max_train: int = 10_000,
) -> dict[str, Any]:
    """Return the test accuracy of a logistic regression on standardized features.

    The inverse regularization C is chosen from 0.01 to 10 on a stratified fifth of the *training* features, then the
    model is fitted once more on all of them; the test set is read once. A class with fewer than 5 training samples
    means C = 1 without a search. At most `max_train` samples are used, which bounds the time (60 000 x 64 features of
    10 classes: 3 s on one core): above that, a seeded subsample with the same class frequencies and every class in it.

    Args:
        train_features: (B, D) float.
        train_labels: (B,) int64, at least two classes; leave unlabeled (-1) images out.
        test_features: (M, D) float, M >= 1.
        test_labels: (M,) int64.
        seed: of the subsample and of the validation split.
        max_train: largest number of training samples used.

    Returns:
        `accuracy` on the test set; `C`; `train_samples` used; `converged`, False when the final fit stopped at
        1000 iterations, so that its accuracy is a lower estimate.

    Raises:
        SemisupError: shapes that do not match, unlabeled samples, fewer than two classes, or features not finite.
    """
    x, y = _as_arrays("train", train_features, train_labels)
    x_test, y_test = _as_arrays("test", test_features, test_labels)
    if x.shape[1] != x_test.shape[1]:
        raise SemisupError(f"train and test features must be equally wide, got {x.shape[1]} and {x_test.shape[1]}")
    classes = np.unique(y)
    if len(classes) < 2:
        raise SemisupError(f"a linear probe needs at least two classes in train_labels, got {len(classes)}")
    if max_train < MIN_PER_CLASS * len(classes):
        raise SemisupError(f"max_train must be at least {MIN_PER_CLASS * len(classes)} for {len(classes)} classes")
    rng = np.random.default_rng(seed)
    order = _stratified_order(y, rng)[:max_train]
    x, y = x[order], y[order]

    strength = 1.0
    if np.unique(y, return_counts=True)[1].min() >= MIN_PER_CLASS:
        # Any prefix of a stratified order is stratified: the first fifth validates.
        order = _stratified_order(y, rng)
        validation, fit = np.split(order, [len(order) // 5])
        scores = [_fit(x[fit], y[fit], c)[0].score(x[validation], y[validation]) for c in STRENGTHS]
        strength = STRENGTHS[int(np.argmax(scores))]  # the first, most regularized of equals
    model, converged = _fit(x, y, strength)
    return {
        "accuracy": float(model.score(x_test, y_test)),
        "C": strength,
        "train_samples": len(y),
        "converged": converged,
    }


def _fit(x: npt.NDArray[np.float64], y: npt.NDArray[np.int64], strength: float) -> tuple[Any, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITER))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in the result instead
        model.fit(x, y)
    return model, bool(model[-1].n_iter_.max() < MAX_ITER)


def _stratified_order(y: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return a random order of the samples in which every prefix has about the class frequencies of `y`.

    Sample i of the n of its class goes to i / n of the way; a prefix as long as the number of classes has each once.
    """
    shuffled = rng.permutation(len(y))
    position = np.empty(len(y))
    for label in np.unique(y):
        members = np.flatnonzero(y[shuffled] == label)
        position[members] = np.arange(len(members)) / len(members)
    return shuffled[np.argsort(position, kind="stable")]


def _as_arrays(name: str, features: Tensor, labels: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    if features.ndim != 2 or not len(features) or labels.shape != features.shape[:1]:
        raise SemisupError(
            f"{name}_features must be (N, D) with N >= 1 and {name}_labels (N,), "
            f"got shapes {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    x, y = _as_array(f"{name}_features", features), labels.cpu().numpy()
    if y.min() < 0:
        raise SemisupError(f"{name}_labels must not be negative: leave unlabeled (-1) samples out")
    return x, y


def _as_array(name: str, features: Tensor) -> npt.NDArray[np.float64]:
    x: npt.NDArray[np.float64] = features.detach().double().cpu().numpy()
    if not np.isfinite(x).all():
        raise SemisupError(f"{name} must be finite: the network that made them has diverged")
    return x
