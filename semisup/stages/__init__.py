"""Steps of a recipe: train, relabel, propagate, probe and knn, each from inputs to an artifact."""

from __future__ import annotations

from semisup.stages.artifact import Artifact, read_artifact, write_json
from semisup.stages.context import StageContext
from semisup.stages.kinds import KINDS
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictor import Predictor, load_predictor

__all__ = [
    "KINDS",
    "Artifact",
    "Plan",
    "Predictor",
    "StageContext",
    "StagePlan",
    "load_predictor",
    "read_artifact",
    "write_json",
]
