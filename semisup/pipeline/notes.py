"""What a planned train stage should be told about: it runs, but not as its author may think."""

from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm

from semisup.config import StageConfig
from semisup.methods import Method

__all__ = ["stage_notes"]

UNSETTLED = 0.05
"""Part of BatchNorm's initial statistics, mean 0 and variance 1, that may be left at the end of a stage."""


def stage_notes(method: Method, stage: StageConfig, steps: int) -> list[str]:
    """Return sentences on a stage, each beginning with the key it is about; none where there is nothing to say.

    Args:
        method: built for the stage, perhaps without memory for its weights.
        stage: its settings.
        steps: its length.
    """
    notes = method.notes(stage.batch.labeled, stage.batch.unlabeled)
    if method.averages and stage.ema is not None:
        notes.append(
            f"ema: {stage.ema} averages what is an average already, and lags behind it: the finished network of "
            f"{stage.method['name']} is its teacher; use ema: null"
        )
    return notes if stage.init is not None else notes + _unsettled(method, steps)


def _unsettled(method: Method, steps: int) -> list[str]:
    """A sentence if BatchNorm would end with statistics that are still largely those it began with."""
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momentum = min((m.momentum for m in norms if m.momentum is not None), default=1.0)
    left = (1 - momentum) ** steps
    if left <= UNSETTLED:
        return []
    enough = 1 - UNSETTLED ** (1 / steps)
    return [
        f"model: after {steps:,} steps at a BatchNorm momentum of {momentum:g}, {left:.0%} of the statistics by which "
        f"the network is judged are still the initial ones, and it may answer one class for everything; "
        f"use bn_momentum: {enough:.2g} or more steps"
    ]
