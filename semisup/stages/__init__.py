"""Steps of a recipe: train, relabel, propagate, probe and knn, each from inputs to an artifact."""

from __future__ import annotations

from collections.abc import Callable

from semisup.stages.artifact import Artifact, read_artifact, write_json
from semisup.stages.context import StageContext
from semisup.stages.judgment import knn, probe
from semisup.stages.predictor import Predictor, load_predictor
from semisup.stages.propagate import propagate
from semisup.stages.relabel import relabel
from semisup.stages.train import train

__all__ = [
    "KINDS",
    "Artifact",
    "Predictor",
    "StageContext",
    "knn",
    "load_predictor",
    "probe",
    "propagate",
    "read_artifact",
    "relabel",
    "train",
    "write_json",
]

KINDS: dict[str, Callable[[StageContext], tuple[Artifact, int | None]]] = {
    "train": train,
    "relabel": relabel,
    "propagate": propagate,
    "probe": probe,
    "knn": knn,
}
"""What a stage's `kind:` runs: it returns the finished stage and the step it was resumed from, if it was."""
