"""The unlabeled images that a self-training stage learns from, without those that look like no class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semisup.evaluate.openness import kept, openness
from semisup.settings import PoolConfig
from semisup.stages.context import StageContext
from semisup.stages.features import features_of_images, look

__all__ = ["own_images", "pool_metrics"]


def own_images(context: StageContext, pool: PoolConfig, by: str | None) -> Tensor | None:
    """Return which training images (N,) bool, on the CPU, are near enough to labeled ones; None: all are wanted.

    Args:
        context: of the stage.
        pool: what it asks for.
        by: the stage whose network is looked with where `pool.by` names none.
    """
    if pool.keep == "all":
        return None
    name = pool.by or by
    assert name is not None  # the stage's check has refused that
    features = features_of_images(context, name, look(context.inputs[name].folder, context.device), "train")
    labeled = torch.from_numpy(context.budget.index).to(features.device)
    return kept(openness(features, labeled), labeled, pool.keep).cpu()


def pool_metrics(images: int, left: int) -> dict[str, Any]:
    """Return what a record says: how many images were left out as foreign, and their part of all.

    Args:
        images: all training images.
        left: those that stay.
    """
    return {"pool/left_out": images - left, "pool/part_left_out": (images - left) / images}
