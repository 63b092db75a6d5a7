"""The knn stage: the labels of an image's nearest ones in the feature space of a frozen network vote."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semisup.config import StageConfig
from semisup.evaluate import knn_predict, predict_logits
from semisup.evaluate.knn import SIMILARITIES
from semisup.stages.artifact import Artifact
from semisup.stages.context import StageContext
from semisup.stages.evaluation import evaluate_test, evaluate_validation
from semisup.stages.features import Layers, features_of_images, finish_evaluated, frozen_network, unchanged
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.requirements import features_of, require_grid, require_labels

__all__ = ["inputs", "plan", "run"]

MOST_NEIGHBORS = 200
"""NPID's k (arXiv:1805.01978, sec. 3.4), whose bank is all of ImageNet."""


def inputs(stage: StageConfig) -> tuple[str, ...]:
    """Return the names of the earlier stages that a stage reads."""
    return () if stage.of is None else (stage.of,)


def plan(whole: Plan, name: str, stage: StageConfig, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a knn stage. One that reads every label whatever the budget is shared by all budgets.

    Raises:
        SemisupError: there are no labels to vote with, or the network has no maps where a key asks for them.
    """
    (source,) = inputs(stage)
    looked_at, config, data = earlier[source], stage.knn, whole.data
    require_labels(whole, "kind", stage.kind)
    features = features_of(looked_at)
    require_grid("knn.grid", config.grid, looked_at, features)
    every_label = config.bank == "all"
    bank = len(data.x_train) if every_label else len(whole.budget.index)
    memory = data.resident_bytes + 4 * config.grid**2 * features.num_features * (bank + len(data.x_test))
    return StagePlan(
        name=name,
        config=stage,
        inputs=(source,),
        reads_labels=not every_label,
        parameters=looked_at.parameters,
        memory=memory + 4 * SIMILARITIES,
    )


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a knn stage: the labels of an image's nearest ones in feature space vote.

    With `bank: labels` the voters are the budget's images, and the result is a few-label result, `test/...`. With
    `bank: all` they are all training images whose label anybody knows, hidden ones too: `knn/accuracy`, a look at the
    features that has no `test/accuracy` for a table of few-label results to take up.
    """
    started = time.perf_counter()
    data, budget, config = context.data, context.budget, context.config.knn
    every_label = config.bank == "all"
    index = np.flatnonzero(data.y_train >= 0) if every_label else budget.index
    network = Layers(frozen_network(context), grid=config.grid)
    k = min(MOST_NEIGHBORS, max(1, len(index) // data.num_classes)) if config.k is None else min(config.k, len(index))
    metrics: dict[str, Any] = {"knn/bank": len(index), "knn/k": k}
    with unchanged(network):
        (source,) = inputs(context.config)
        bank = features_of_images(context, source, network, "train", index)
        labels = torch.from_numpy(data.y_train[index]).to(bank.device)
        seconds = time.perf_counter() - started

        def answers(batches: Iterator[Tensor]) -> Tensor:
            queries = predict_logits(network, batches)
            votes = knn_predict(bank, labels, queries, num_classes=data.num_classes, k=k, temperature=config.tau)
            votes = votes.double()
            return (votes / votes.sum(1, keepdim=True)).clamp(min=1e-12).log().cpu()

        if every_label and len(data.x_test):
            guesses = answers(context.clean_batches(data.x_test)).argmax(1)
            metrics["knn/accuracy"] = float((guesses == torch.from_numpy(data.y_test)).double().mean())
        elif not every_label:
            metrics |= evaluate_validation(context, answers)
            if len(data.x_test):
                metrics |= evaluate_test(context, answers(context.clean_batches(data.x_test)))
    return finish_evaluated(context, network, [], started, seconds, len(index), metrics), None
