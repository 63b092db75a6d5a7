"""`refresh_batchnorm`: the statistics that a finished network is evaluated and kept with.

Digits, WRN-10-1, labels alone with strong views, 200 steps, last weights, means of three draws, 40 / 600 labels:
momentum 0.001 37.8 / 18.5%, refreshed 88.6 / 97.0; 0.015, which leaves 5% of the initial statistics, 88.1 / 92.9,
refreshed 88.6 / 97.0; 0.1 at 600 labels 94.5, refreshed 97.0. FixMatch at 0.1: 89.6 / 95.5, refreshed 89.8 / 96.6.
Fashion-MNIST likewise (benchmarks/results/batchnorm.md): momentum 0.001 18.5 / 19.2%, 0.015 46.9 / 56.5, 0.1 55.2 /
63.5, refreshed 59.4 / 69.9; FixMatch at 0.1: 53.5 / 74.8, refreshed 56.9 / 75.4. A momentum that just settles is worse
than both on either data set: hence no `auto` for it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from semisup.engine.seeding import generator
from semisup.methods import Method
from semisup.models import initial_share, refresh_statistics
from semisup.settings import TrainConfig
from semisup.stages.context import StageContext, clean_batches

__all__ = ["refresh", "refreshes"]

IMAGES, BATCH = 2048, 256
"""Images that are looked at, at the most, and in one forward: 8 batches of 256."""
UNSETTLED = 0.05
"""Part of BatchNorm's initial statistics that may be left at the end of a stage."""


def refreshes(stage: TrainConfig, method: Method, steps: int, *, pretrained: bool) -> bool:
    """Say whether a stage ends with statistics that are estimated anew: `auto` where the running ones cannot settle.

    A stage that starts from another network or from somebody's weights (`pretrained`) starts from settled ones.
    """
    if stage.refresh_batchnorm != "auto":
        return stage.refresh_batchnorm
    return not pretrained and initial_share(method, steps) > UNSETTLED


def refresh(context: StageContext, method: Method, predictor: nn.Module, pool: Tensor) -> None:
    """Estimate the predictor's BatchNorm statistics on clean training images, in place.

    The images are those that the method reads: without unlabeled views the labeled ones alone. Which of them is drawn
    from the seed, so that a stage that is run again ends with the same network.

    Args:
        context: of the stage.
        method: as it was trained.
        predictor: its own, or the average of it.
        pool: (M,) rows that unlabeled batches were made of, repeats allowed.
    """
    data = context.data
    rows = pool.unique().numpy() if method.views.unlabeled else context.budget.index
    order = torch.randperm(len(rows), generator=generator(context.recipe.seed, context.name, "statistics"))
    chosen = rows[order[:IMAGES].numpy()]
    parts = np.array_split(chosen, max(1, round(len(chosen) / BATCH)))
    normalize = context.normalize()
    refresh_statistics(
        predictor,
        (
            batch
            for part in parts
            for batch in clean_batches(data.x_train, normalize, context.device, part, size=len(part))
        ),
    )
