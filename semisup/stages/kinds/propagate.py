"""The propagate stage: labels spread over a graph that joins each image to the ones that look like it to a network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from semisup.config import Input, StageConfig
from semisup.options import BelowOne, ClassSharesOrNot, Positive, Range

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """How a propagate stage spreads the labels over its graph of images (arXiv:1904.04717)."""

    kind: Literal["propagate"] = "propagate"
    """What the stage does."""
    teacher: list[str] = []
    """Earlier train or features stages, by whose features images are compared; one may be written without the brackets.
    Those of several stand next to each other (`components` gives them one scale)."""
    neighbors: Annotated[int, Range(1, 10_000)] = 50
    """Nearest images that each one is joined to, >= 1."""
    alpha: BelowOne = 0.99
    """How far labels travel: 0 (not at all) to less than 1."""
    power: Positive = 3.0
    """Exponent of the cosine that weighs an edge, > 0."""
    soft: bool = False
    """Keep probabilities (true) or only the best class (false, as published)."""
    grid: Annotated[int, Range(1, 64)] = 1
    """See the probe's."""
    components: Annotated[int, Range(1, 100_000)] | None = None
    """Compare images by so many principal components of their features, all of the same variance, >= 1; null: by the
    features as they are. Labels that are right after spreading 40 / 100 / 600 of Fashion-MNIST's over a SimCLR
    encoder's graph, means of six draws: 70.0 / 74.9 / 80.8% by the features, 73.7 / 77.7 / 83.3 by 64 components,
    75.1 / 79.0 / 84.8 by 200 of grid 3, and 75.5 / 79.4 / 85.0 balanced too."""
    balance: ClassSharesOrNot = False
    """Scale what reaches the images so that classes have the wanted shares of them: uniform (or true) the same, labels
    those of the labels, estimated those that expectation-maximization finds (Saerens et al. 2002), or a list of one
    share for each class; false: as it comes."""
    mirror: bool = False
    """Features are the mean of an image's and its mirror image's: 85.8% right after spreading 600, not 85.3 (six draws,
    200 components of grid 3, balanced, over all 60,000 images; the figures above are of 15,000)."""


LEAVES = ("pseudo-labels",)


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names."""
    return [Input(f"teacher[{i}]", name, "features") for i, name in enumerate(stage.teacher)]


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if not stage.teacher:
        yield "teacher", "missing; a propagate stage needs a stage whose features it compares images by"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a propagate stage.

    Raises:
        SemisupError: there are no labels to spread, or a network or the data lack what a key asks of them.
    """
    from semisup.errors import collecting, raise_all
    from semisup.stages.planned import StagePlan
    from semisup.stages.requirements import features_of, names_of, require_grid, require_labels

    data, problems = whole.data, list[str]()
    with collecting(problems):
        require_labels(whole, "kind", stage.kind)
    if stage.mirror and not data.flip:
        problems.append(
            f"mirror: a mirrored image of '{data.name}' may be of another class; leave it false, or say that it "
            f"keeps its class with data.flip=true"
        )
    if isinstance(stage.balance, list) and len(stage.balance) != data.num_classes:
        problems.append(f"balance: must be {data.num_classes} numbers, one for each class, not {stage.balance}")
    memory = data.resident_bytes
    memory += 48 * len(data.x_train) * stage.neighbors  # each edge both ways, 12 bytes, and a copy
    for teacher in stage.teacher:
        features = features_of(earlier[teacher])
        with collecting(problems):
            require_grid("grid", stage.grid, earlier[teacher], features)
        numbers = stage.grid**2 * features.num_features * len(data.x_train)
        memory += (8 if stage.components is None else 24) * numbers  # once more, and twice in doubles
    raise_all(problems)
    return StagePlan(name=name, config=stage, inputs=names_of(inputs(stage)), memory=memory)


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a propagate stage: features of clean images, their graph, the labels of the budget spread over it.

    It leaves what a relabel stage leaves. The certainty omega and the class weights, which Iscen et al. multiply the
    losses with, are how often an image is in the pool that a later stage draws from. Labeled images keep their labels,
    with omega = 1.
    """
    import numpy as np
    import torch
    from torch import nn

    from semisup.engine import generator
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
    from semisup.stages.features import Layers, Mirrored, features_of_images
    from semisup.stages.predictor import load_features
    from semisup.stages.targets import save_targets

    started = time.perf_counter()
    data, config = context.data, context.config
    assert isinstance(config, Config)
    parts = []
    for teacher in config.teacher:
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
