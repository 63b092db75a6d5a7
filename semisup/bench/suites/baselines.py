"""Baselines from outside the toolkit: scikit-learn's semi-supervised and plain classifiers, on pixels or on features.

They see what every method sees: the labeled images of the draw and the unlabeled ones, as vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from semisup.errors import SemisupError, first_line
from semisup.options import Count, Fraction, Positive, Range, check_named

__all__ = ["BASELINES", "check_baseline", "choose_unlabeled", "fit_baseline"]

Inside = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
MAX_UNLABELED = 10_000
"""Unlabeled images that a transductive baseline gets at most: a graph of 60,000 would take minutes for each draw."""


def _logistic_regression(*, C: Positive = 1.0) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=1000)


def _self_training(*, C: Positive = 1.0, threshold: Fraction = 0.75) -> Any:
    from sklearn.semi_supervised import SelfTrainingClassifier

    return SelfTrainingClassifier(_logistic_regression(C=C), threshold=threshold)


def _label_spreading(*, neighbors: Count = 7, alpha: Inside = 0.2) -> Any:
    from sklearn.semi_supervised import LabelSpreading

    return LabelSpreading(kernel="knn", n_neighbors=neighbors, alpha=alpha, max_iter=100)


BASELINES: dict[str, Callable[..., Any]] = {
    "logistic_regression": _logistic_regression,
    "self_training": _self_training,
    "label_spreading": _label_spreading,
}
"""Keyword options -> an object with scikit-learn's fit(x, y) and predict_proba(x): LogisticRegression on the labeled
images, SelfTrainingClassifier around one, LabelSpreading on the graph of nearest neighbors. Defaults are scikit-learn's
own (1.9)."""
READ_UNLABELED = ("self_training", "label_spreading")
"""Those whose fit also wants unlabeled images, marked -1."""


def check_baseline(baseline: Mapping[str, Any], at: str) -> list[str]:
    """Return what is wrong with a suite's `baseline:` mapping, which stands at the key `at`."""
    return check_named(baseline, "name", BASELINES, "baseline", at)


def choose_unlabeled(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the unlabeled images of a baseline: all of `rows` (n,), or a seeded choice of 10,000, sorted."""
    return np.sort(np.random.RandomState(seed).permutation(rows)[:MAX_UNLABELED])


def fit_baseline(
    baseline: Mapping[str, Any],
    labeled: NDArray[np.float64],
    y: NDArray[np.int64],
    unlabeled: NDArray[np.float64],
    queries: list[NDArray[np.float64]],
    num_classes: int,
) -> list[NDArray[np.float64]]:
    """Fit on the labels, and where the baseline can, on the unlabeled images; return class probabilities.

    Inputs are standardized with the mean and standard deviation of all training vectors given. Without unlabeled images
    a baseline that reads them learns from the labels alone; of one class, that class is predicted; a graph has at most
    as many neighbors as there are images.

    Args:
        baseline: `name` and options.
        labeled: (L, D) vectors of the labeled images.
        y: (L,) classes 0 .. num_classes - 1.
        unlabeled: (U, D) vectors of the others, see `choose_unlabeled`.
        queries: arrays (M, D) to predict.
        num_classes: C.

    Returns:
        For each of `queries` (M, C) probabilities; a class without a label has 0.

    Raises:
        SemisupError: scikit-learn refuses the options or the data.
    """
    from sklearn.preprocessing import StandardScaler

    options = dict(baseline)
    name = options.pop("name")
    if len(np.unique(y)) == 1:  # scikit-learn's classifiers refuse to learn one class
        return [np.eye(num_classes)[np.full(len(query), y[0])] for query in queries]
    every = np.concatenate([labeled, unlabeled])
    scaler = StandardScaler().fit(every)
    x, classes = labeled, y
    if name in READ_UNLABELED:  # of which there are none with all labels
        x, classes = every, np.concatenate([y, np.full(len(unlabeled), -1)])
    model = BASELINES[name](**options)
    if name == "label_spreading":
        model.n_neighbors = min(model.n_neighbors, len(x))
    with warnings.catch_warnings():
        # ConvergenceWarning of a fit that is good enough; LabelSpreading divides by 0 for images that no label reaches;
        # SelfTrainingClassifier says that there are no unlabeled images.
        warnings.simplefilter("ignore")
        try:
            model.fit(scaler.transform(x), classes)
            found = [model.predict_proba(scaler.transform(query)) for query in queries]
        except ValueError as error:
            raise SemisupError(f"baseline {baseline['name']}: {first_line(error)}") from error
    probs = []
    for of_known in found:
        full = np.zeros((len(of_known), num_classes))
        full[:, model.classes_] = np.nan_to_num(of_known)
        # An image that no label reaches: nothing is known.
        full[full.sum(1) == 0] = 1 / num_classes
        probs.append(full / full.sum(1, keepdims=True))
    return probs
