"""The propagate stage: labels spread over a graph that joins each image to the ones that look like it to a network."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from semisup.options import BelowOne, ClassSharesOrNot, Positive, Range
from semisup.settings import Input, StageConfig

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from torch import Tensor

    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """How a propagate stage spreads the labels over its graph of images (arXiv:1904.04717)."""

    only_with: ClassVar = {"whiten": ("components", True)}
    kind: Literal["propagate"] = "propagate"
    """What the stage does."""
    teacher: list[str] = []
    """Earlier train or features stages, by whose features images are compared; one may be written without the brackets.
    Those of several stand next to each other (`components` and `whiten` give them one scale)."""
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
    whiten: Literal["together", "each"] = "together"
    """Where `components` is given: components of all teachers' features together, or of each teacher's, then scaled to
    unit length, so that networks of different widths count the same."""
    balance: ClassSharesOrNot = False
    """Scale what reaches the images so that classes have the wanted shares of them: uniform (or true) the same, labels
    those of the labels, estimated those that expectation-maximization finds (Saerens et al. 2002), or a list of one
    share for each class; false: as it comes."""
    mirror: bool = False
    """Features are the mean of an image's and its mirror image's: 85.8% right after spreading 600, not 85.3 (six draws,
    200 components of grid 3, balanced, over all 60,000 images; the figures above are of 15,000)."""

    test: Literal["induce", "graph"] | None = None
    """Judge what was spread on the test images (test/accuracy). induce: each asks its `neighbors` nearest training
    images (Delalleau et al. 2005), as any new image would. graph: test images, without labels, are part of the graph,
    which no result of unlabeled training images alone may be compared with. null: not at all."""


LEAVES = ("pseudo-labels", "predictions")


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
    from semisup.stages.requirements import features_of, names_of, require_grid, require_labels, require_mirror

    data, problems = whole.data, list[str]()
    with collecting(problems):
        require_labels(whole, "kind", stage.kind)
    if stage.mirror:
        with collecting(problems):
            require_mirror("mirror", data)
    if isinstance(stage.balance, list) and len(stage.balance) != data.num_classes:
        problems.append(f"balance: must be {data.num_classes} numbers, one for each class, not {stage.balance}")
    memory = data.resident_bytes
    memory += 48 * len(data.x_train) * stage.neighbors  # each edge both ways, 12 bytes, and a copy
    for teacher in stage.teacher:
        features = features_of(earlier[teacher])
        with collecting(problems):
            require_grid("grid", stage.grid, earlier[teacher], features)
        own = earlier[teacher].config
        parts = getattr(own, "grid", 1) ** 2 * getattr(own, "maps", 1)  # of a features stage
        numbers = stage.grid**2 * parts * features.num_features * len(data.x_train)
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

    from semisup.engine import generator
    from semisup.graph import (
        balanced,
        certainty,
        class_weights,
        joined,
        resample,
        spread_labels,
        wanted_shares,
    )
    from semisup.stages.targets import save_targets

    started = time.perf_counter()
    data, config = context.data, context.config
    assert isinstance(config, Config)
    near, n = _neighbors(context, config), len(data.x_train)
    graph = joined(*near.inside, config.power)
    index = context.budget.index
    labels = data.y_train[index]
    spread = spread_labels(graph, index, labels, data.num_classes, config.alpha)
    reached = spread.sum(1) > 0  # the guess elsewhere is arbitrary: it must not make a class look frequent
    if config.balance:
        spread = balanced(spread, wanted_shares(config.balance, spread, labels))
    spread[index] = np.eye(data.num_classes)[labels]
    every, omega = certainty(spread)
    probs, omega, reached = every[:n], omega[:n], reached[:n]
    guesses = probs.argmax(1)
    weights = omega * class_weights(guesses[reached], data.num_classes)[guesses]
    pool = resample(weights, generator(context.recipe.seed, context.name, "pool"))
    targets = torch.from_numpy(probs if config.soft else np.eye(data.num_classes)[guesses]).float()
    metrics = _judged(context, config, torch.from_numpy(every), near)
    return save_targets(context, pool, targets, started, len(probs) * len(config.teacher), metrics), None


@dataclass(frozen=True)
class _Neighbors:
    """Nearest images, cosines and rows of each: of those in the graph, and of test images that stand outside of it."""

    inside: tuple[Tensor, Tensor]
    outside: tuple[Tensor, Tensor] | None


_kept: dict[str, _Neighbors] = {}
KEPT = 2
"""Searches that a process remembers. Labels change none: those of `vote: best`, which spreads anew without a part of
the labels, and of a suite's budgets and draws are one search. 60,000 images with 20 neighbors are 14 MB."""


def _neighbors(context: StageContext, config: Config) -> _Neighbors:
    """Search, unless this process has just done the same search."""
    import torch

    from semisup.records import DIGEST

    records = [context.inputs[teacher].record for teacher in config.teacher]
    searched = config.model_dump(include={"neighbors", "grid", "components", "whiten", "mirror", "test"})
    judged = len(context.data.x_test) if _judges(context, config) else 0
    images = [context.data.hash, judged, *context.statistics]
    place = [str(context.device), torch.get_num_threads()]  # on which the last bits depend
    # A record's digest covers those of the stage's weights and features.
    key = json.dumps([[record[DIGEST] for record in records], searched, images, place])
    found = _kept.get(key) or _search(context, config)
    _kept[key] = found
    while len(_kept) > KEPT:
        del _kept[next(iter(_kept))]
    return found


def _search(context: StageContext, config: Config) -> _Neighbors:
    from semisup.graph import nearest

    compared, n = _compared(context, config), len(context.data.x_train)
    if config.test == "graph":
        return _Neighbors(nearest(compared, config.neighbors), None)
    outside = nearest(compared[:n], config.neighbors, compared[n:]) if _judges(context, config) else None
    return _Neighbors(nearest(compared[:n], config.neighbors), outside)


def _compared(context: StageContext, config: Config) -> Tensor:
    """Return what images are compared by (N, D): the training images, then the test images if they are evaluated."""
    import torch
    import torch.nn.functional as F

    from semisup.graph import whitened
    from semisup.stages.features import features_of_images, look

    fit = len(context.data.x_train) if _judges(context, config) and config.test == "induce" else None
    parts = []
    for teacher in config.teacher:
        network = look(context.inputs[teacher].folder, context.device, grid=config.grid, mirror=config.mirror)
        found = features_of_images(context, teacher, network, "train")
        if _judges(context, config):
            found = torch.cat([found, features_of_images(context, teacher, network, "test")])
        if config.components is not None and config.whiten == "each":
            found = F.normalize(whitened(found, config.components, fit), dim=1)
        parts.append(found)
    compared = torch.cat(parts, dim=1)
    if config.components is None or config.whiten == "each":
        return compared
    return whitened(compared, config.components, fit)


def _judges(context: StageContext, config: Config) -> bool:
    return config.test is not None and len(context.data.x_test) > 0


def _judged(context: StageContext, config: Config, probs: Tensor, near: _Neighbors) -> dict[str, Any]:
    """Return the test metrics of what was spread, `probs` (N, C) of the graph's images, if it is asked for."""
    from semisup.graph import induced
    from semisup.stages.evaluation import evaluate_test

    if not _judges(context, config):
        return {}
    said = probs[len(context.data.x_train) :] if near.outside is None else induced(*near.outside, probs, config.power)
    return evaluate_test(context, said.clamp(min=1e-12).log())
