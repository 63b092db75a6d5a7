"""The face of scikit-learn: recipes as estimators."""

from __future__ import annotations

from semisup.estimator.classifier import SemiSupervisedClassifier

__all__ = ["SemiSupervisedClassifier"]
