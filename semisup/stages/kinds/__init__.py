"""What a stage can be, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from semisup.config import StageConfig
from semisup.stages.artifact import Artifact
from semisup.stages.context import StageContext
from semisup.stages.kinds import features, knn, probe, propagate, relabel, train
from semisup.stages.planned import Plan, StagePlan

__all__ = ["KINDS", "Kind"]


class Kind(Protocol):
    """What the file of a kind offers."""

    def inputs(self, stage: StageConfig) -> tuple[str, ...]:
        """Return the names of the earlier stages that a stage reads."""

    def plan(self, whole: Plan, name: str, stage: StageConfig, earlier: Mapping[str, StagePlan]) -> StagePlan:
        """Plan a stage; its fingerprint and the memory of a training step are not its own business."""

    def run(self, context: StageContext) -> tuple[Artifact, int | None]:
        """Run a stage; return what it leaves, and the step that it was resumed from, if it was."""


KINDS: dict[str, Kind] = {
    "train": train,
    "features": features,
    "relabel": relabel,
    "propagate": propagate,
    "probe": probe,
    "knn": knn,
}
"""By what a stage's `kind:` says."""
