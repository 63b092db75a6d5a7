"""Evaluation: accuracy and calibration, nearest neighbors, linear probe, collapse, pseudo-label quality, figures."""

from __future__ import annotations

from semisup.evaluate.collapse import collapse_panel, collapsed
from semisup.evaluate.forward import predict_logits
from semisup.evaluate.knn import knn_accuracy, knn_predict
from semisup.evaluate.metrics import (
    classification_metrics,
    confusion_matrix,
    expected_calibration_error,
    predictions_collapsed,
)
from semisup.evaluate.plots import confusion_figure, reliability_figure
from semisup.evaluate.probe import LinearProbe, fit_probe
from semisup.evaluate.pseudo_labels import pseudo_label_quality
from semisup.evaluate.temperature import fit_temperature, probabilities

__all__ = [
    "LinearProbe",
    "classification_metrics",
    "collapse_panel",
    "collapsed",
    "confusion_figure",
    "confusion_matrix",
    "expected_calibration_error",
    "fit_probe",
    "fit_temperature",
    "knn_accuracy",
    "knn_predict",
    "predict_logits",
    "predictions_collapsed",
    "probabilities",
    "pseudo_label_quality",
    "reliability_figure",
]
