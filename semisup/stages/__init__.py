"""Steps of a recipe: train and relabel, each from inputs to an artifact."""

from __future__ import annotations

from semisup.stages.artifact import Artifact, read_artifact, write_json
from semisup.stages.context import StageContext
from semisup.stages.predictor import Predictor, load_predictor
from semisup.stages.relabel import relabel
from semisup.stages.train import train

__all__ = [
    "Artifact",
    "Predictor",
    "StageContext",
    "load_predictor",
    "read_artifact",
    "relabel",
    "train",
    "write_json",
]
