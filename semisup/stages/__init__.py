"""Steps of a recipe: train, relabel, propagate, probe and knn, each from inputs to an artifact.

What is offered here is imported when it is asked for: the kinds' settings are read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semisup.stages.artifact import Artifact, read_artifact, write_json
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan
    from semisup.stages.predictor import Predictor, load_predictor

__all__ = [
    "Artifact",
    "Plan",
    "Predictor",
    "StageContext",
    "StagePlan",
    "load_predictor",
    "read_artifact",
    "write_json",
]

HOMES = {
    "artifact": ("Artifact", "read_artifact", "write_json"),
    "context": ("StageContext",),
    "planned": ("Plan", "StagePlan"),
    "predictor": ("Predictor", "load_predictor"),
}


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
