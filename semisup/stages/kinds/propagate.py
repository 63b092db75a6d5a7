"""The propagate stage: labels spread over a graph that joins each image to the ones that look like it to a network."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from semisup.config import StageConfig
from semisup.engine import generator
from semisup.errors import SemisupError
from semisup.graph import (
    balanced,
    certainty,
    class_weights,
    neighbor_graph,
    resample,
    spread_labels,
    wanted_shares,
    whitened,
)
from semisup.stages.artifact import Artifact
from semisup.stages.context import StageContext
from semisup.stages.features import Layers, Mirrored, features_of_images
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictor import load_features
from semisup.stages.requirements import features_of, require_grid, require_labels
from semisup.stages.targets import save_targets

__all__ = ["inputs", "plan", "run"]


def inputs(stage: StageConfig) -> tuple[str, ...]:
    """Return the names of the earlier stages that a stage reads."""
    return tuple(dict.fromkeys(stage.teacher))


def plan(whole: Plan, name: str, stage: StageConfig, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a propagate stage.

    Raises:
        SemisupError: there are no labels to spread, or a network or the data lack what a key asks of them.
    """
    config, data = stage.propagate, whole.data
    require_labels(whole, "kind", stage.kind)
    if config.mirror and not data.flip:
        raise SemisupError(
            f"propagate.mirror: a mirrored image of '{data.name}' may be of another class; leave it false, or say that "
            f"it keeps its class with data.flip=true"
        )
    if isinstance(config.balance, list) and len(config.balance) != data.num_classes:
        raise SemisupError(
            f"propagate.balance: must be {data.num_classes} numbers, one for each class, not {config.balance}"
        )
    memory = data.resident_bytes
    memory += 48 * len(data.x_train) * config.neighbors  # each edge both ways, 12 bytes, and a copy
    for teacher in stage.teacher:
        features = features_of(earlier[teacher])
        require_grid("propagate.grid", config.grid, earlier[teacher], features)
        numbers = config.grid**2 * features.num_features * len(data.x_train)
        memory += (8 if config.components is None else 24) * numbers  # once more, and twice in doubles
    return StagePlan(name=name, config=stage, inputs=inputs(stage), memory=memory)


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a propagate stage: features of clean images, their graph, the labels of the budget spread over it.

    It leaves what a relabel stage leaves. The certainty omega and the class weights, which Iscen et al. multiply the
    losses with, are how often an image is in the pool that a later stage draws from. Labeled images keep their labels,
    with omega = 1.
    """
    started = time.perf_counter()
    data, config = context.data, context.config.propagate
    parts = []
    for teacher in context.config.teacher:
        features: nn.Module = Layers(load_features(context.inputs[teacher].folder, context.device), grid=config.grid)
        if config.mirror:
            features = Mirrored(features)
        parts.append(features_of_images(context, teacher, features, "train"))
    compared = torch.cat(parts, dim=1)
    if config.components is not None:
        compared = whitened(compared, config.components)
    graph = neighbor_graph(compared, config.neighbors, config.power)
    index = context.budget.index
    labels = data.y_train[index]
    spread = spread_labels(graph, index, labels, data.num_classes, config.alpha)
    reached = spread.sum(1) > 0  # the guess elsewhere is arbitrary: it must not make a class look frequent
    if config.balance:
        spread = balanced(spread, wanted_shares(config.balance, spread, labels))
    spread[index] = np.eye(data.num_classes)[labels]
    probs, omega = certainty(spread)
    guesses = probs.argmax(1)
    weights = omega * class_weights(guesses[reached], data.num_classes)[guesses]
    pool = resample(weights, generator(context.recipe.seed, context.name, "pool"))
    targets = probs if config.soft else np.eye(data.num_classes)[guesses]
    return save_targets(context, pool, torch.from_numpy(targets).float(), started, len(probs) * len(parts)), None
