"""What a planned train stage should be told about: it runs, but not as its author may think."""

from __future__ import annotations

from semisup.methods import Method
from semisup.models import initial_share
from semisup.settings import TrainConfig
from semisup.stages.refresh import UNSETTLED

__all__ = ["stage_notes"]


def stage_notes(method: Method, stage: TrainConfig, steps: int, *, pretrained: bool) -> list[str]:
    """Return sentences on a stage, each beginning with the key it is about; none where there is nothing to say.

    Args:
        method: built for the stage, perhaps without memory for its weights.
        stage: its settings, as planned.
        steps: its length.
        pretrained: its network starts from weights that somebody has trained.
    """
    notes = method.notes(stage.batch.labeled, stage.batch.unlabeled)
    if method.averages and stage.ema is not None:
        notes.append(
            f"ema: {stage.ema} averages what is an average already, and lags behind it: the finished network of "
            f"{stage.method['name']} is its teacher; use ema: null"
        )
    return notes if pretrained else notes + _unsettled(method, stage, steps)


def _unsettled(method: Method, stage: TrainConfig, steps: int) -> list[str]:
    """Return a sentence if BatchNorm would end with statistics that are still largely those it began with."""
    left = initial_share(method, steps)
    if left <= UNSETTLED:
        return []
    enough = 1 - UNSETTLED ** (1 / steps)
    settled = f"use bn_momentum: {enough:.2g} or more steps"
    if stage.refresh_batchnorm:
        return [
            f"model: {steps:,} steps are too few for its BatchNorm momentum and would leave {left:.0%} of the initial "
            f"statistics; they are estimated anew at the end, but a teacher in eval mode goes without. To settle them, "
            f"{settled}"
        ]
    return [
        f"refresh_batchnorm: after {steps:,} steps {left:.0%} of the initial BatchNorm statistics would be left, and "
        f"the network may predict one class for everything; set it to auto, or {settled}"
    ]
