"""scikit-learn's own checks of an estimator, on vectors that are laid into squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from semisup.estimator import SemiSupervisedClassifier

SMALL = SemiSupervisedClassifier(
    method="supervised",
    backbone={"name": "cnn", "width": 4},
    max_steps=25,
    image_shape="square",
    overrides=(
        "stages.train.optimizer.lr=0.03",
        "stages.train.batch.labeled=32",
        "stages.train.augment={weak: {policy: none}}",  # nothing of a vector may be shifted
    ),
)

EXPECTED = {"check_classifiers_classes": "trains on the classes -1 and 1, and -1 is unlabeled here"}


@parametrize_with_checks([SMALL], expected_failed_checks=lambda _: EXPECTED)
def test_check(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
