"""The probe stage: what the labels of the budget can read off the features of a frozen network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from semisup.config import StageConfig
from semisup.evaluate import LinearProbe, fit_probe, predict_logits
from semisup.models.weights import save_weights
from semisup.stages.artifact import Artifact
from semisup.stages.context import StageContext
from semisup.stages.evaluation import evaluate_test, evaluate_validation
from semisup.stages.features import Layers, features_of_images, finish_evaluated, frozen_network, unchanged
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.requirements import features_of, require_grid, require_labels, require_maps

__all__ = ["inputs", "plan", "run"]


def inputs(stage: StageConfig) -> tuple[str, ...]:
    """Return the names of the earlier stages that a stage reads."""
    return () if stage.of is None else (stage.of,)


def plan(whole: Plan, name: str, stage: StageConfig, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a probe stage.

    Raises:
        SemisupError: there are no labels to learn from, or the network has no maps where a key asks for them.
    """
    (source,) = inputs(stage)
    looked_at = earlier[source]
    require_labels(whole, "kind", stage.kind)
    features = features_of(looked_at)
    if stage.probe.layers:
        require_maps("probe.layers", "names no layers", looked_at, features)
    require_grid("probe.grid", stage.probe.grid, looked_at, features)
    memory = whole.data.resident_bytes
    return StagePlan(name=name, config=stage, inputs=(source,), parameters=looked_at.parameters, memory=memory)


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a probe stage: logistic regression on the frozen features of the budget's images.

    Nothing but the budget's labels decides about it, regularization included. `test/...` judge the last layer, which is
    what a classifier's head would see: never the layer that does best on test. `cv_accuracy` is what the labels
    themselves say of each layer. The features of the labeled images stay in `features.safetensors`.
    """
    started = time.perf_counter()
    data, budget = context.data, context.budget
    network = frozen_network(context)
    (source,) = inputs(context.config)
    layers = Layers(network, layers=context.config.probe.layers, grid=context.config.probe.grid)
    with unchanged(network):
        features = layers.split(features_of_images(context, source, layers, "train", budget.index).cpu())
        labels = torch.from_numpy(data.y_train[budget.index])
        cached = {"index": torch.from_numpy(budget.index), "labels": labels, **features}
        save_weights(context.folder / "features.safetensors", cached)
        probes = {name: fit_probe(x, labels, context.recipe.seed) for name, x in features.items()}
        seconds = time.perf_counter() - started
        last = list(probes)[-1]
        metrics = _of_probe("probe", probes[last])
        metrics |= evaluate_validation(
            context,
            lambda batches: probes[last].logits(
                layers.split(predict_logits(layers, batches).cpu())[last], data.num_classes
            ),
        )
        if len(data.x_test):
            test = layers.split(features_of_images(context, source, layers, "test").cpu())
            y_test = torch.from_numpy(data.y_test)
            answers = {name: each.logits(test[name], data.num_classes) for name, each in probes.items()}
            metrics |= evaluate_test(context, answers[last])
            for name in probes if context.config.probe.layers else ():
                metrics |= _of_probe(name, probes[name])
                metrics[f"{name}/accuracy"] = float((answers[name].argmax(1) == y_test).double().mean())
    return finish_evaluated(context, network, ["features.safetensors"], started, seconds, len(labels), metrics), None


def _of_probe(name: str, found: LinearProbe) -> dict[str, Any]:
    values = {"C": found.strength, "folds": found.folds, "cv_accuracy": found.cv_accuracy, "converged": found.converged}
    return {f"{name}/{key}": value for key, value in values.items()}
