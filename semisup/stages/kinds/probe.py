"""The probe stage: what the labels of the budget can read off the features of a frozen network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from semisup.options import Range
from semisup.settings import Input, StageConfig

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    from semisup.evaluate import LinearProbe
    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """How a probe stage evaluates a frozen network: logistic regression on its features of the budget's images."""

    kind: Literal["probe"] = "probe"
    """What the stage does."""
    of: str | None = None
    """An earlier train stage, or features stage, whose network is looked at."""
    layers: bool = False
    """Probe every layer group of the backbone too, each averaged over its map; test/accuracy stays that of the
    features."""
    grid: Annotated[int, Range(1, 64)] = 1
    """Features are the means of the last map's grid x grid parts, >= 1; 1: one mean, what a classifier's head sees.
    More keep where in the image something was (as pooled for VISSL's probes, arXiv:1905.01235, sec. 5)."""


LEAVES = ("predictions",)


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names."""
    return [] if stage.of is None else [Input("of", stage.of, "features")]


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if stage.of is None:
        yield "of", "missing; a probe stage needs the train stage whose network it evaluates"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a probe stage.

    Raises:
        SemisupError: there are no labels to learn from, or the network has no maps where a key asks for them.
    """
    from semisup.errors import collecting, raise_all
    from semisup.stages.planned import StagePlan
    from semisup.stages.requirements import features_of, require_grid, require_labels, require_maps

    assert stage.of is not None
    looked_at = earlier[stage.of]
    features, problems = features_of(looked_at), list[str]()
    with collecting(problems):
        require_labels(whole, "kind", stage.kind)
    with collecting(problems):
        if stage.layers:
            require_maps("layers", "names no layers", looked_at, features)
    with collecting(problems):
        require_grid("grid", stage.grid, looked_at, features)
    raise_all(problems)
    memory = whole.data.resident_bytes
    return StagePlan(name=name, config=stage, inputs=(stage.of,), parameters=looked_at.parameters, memory=memory)


def run(context: StageContext) -> tuple[Artifact, None]:
    """Run a probe stage: logistic regression on the frozen features of the budget's images.

    Nothing but the budget's labels decides about it, regularization included. `test/...` are of the last layer, which
    is what a classifier's head would see: never the layer that does best on test. `cv_accuracy` is what the labels
    themselves say of each layer. The features of the labeled images stay in `features.safetensors`, the regression of
    the last layer in `probe.safetensors`, so that a relabel stage can ask it.
    """
    import torch

    from semisup.evaluate import fit_probe, predict_logits
    from semisup.models.weights import save_weights
    from semisup.stages.evaluation import evaluate_test, evaluate_validation
    from semisup.stages.features import features_of_images, finish_evaluated, look, unchanged
    from semisup.stages.predictions import PROBE

    started = time.perf_counter()
    data, budget, config = context.data, context.budget, context.config
    assert isinstance(config, Config)
    of = str(config.of)
    layers = look(context.inputs[of].folder, context.device, layers=config.layers, grid=config.grid)
    with unchanged(layers):
        features = layers.split(features_of_images(context, of, layers, "train", budget.index).cpu())
        labels = torch.from_numpy(data.y_train[budget.index])
        cached = {"index": torch.from_numpy(budget.index), "labels": labels, **features}
        save_weights(context.folder / "features.safetensors", cached)
        probes = {name: fit_probe(x, labels, context.recipe.seed) for name, x in features.items()}
        seconds = time.perf_counter() - started
        last = list(probes)[-1]
        save_weights(context.folder / PROBE, probes[last].linear(data.num_classes))
        metrics = _of_probe("probe", probes[last])
        metrics |= evaluate_validation(
            context,
            lambda batches: probes[last].logits(
                layers.split(predict_logits(layers, batches).cpu())[last], data.num_classes
            ),
        )
        if len(data.x_test):
            test = layers.split(features_of_images(context, of, layers, "test").cpu())
            y_test = torch.from_numpy(data.y_test)
            logits = {name: each.logits(test[name], data.num_classes) for name, each in probes.items()}
            metrics |= evaluate_test(context, logits[last])
            for name in probes if config.layers else ():
                metrics |= _of_probe(name, probes[name])
                metrics[f"{name}/accuracy"] = float((logits[name].argmax(1) == y_test).double().mean())
    files = ["features.safetensors", PROBE]
    return finish_evaluated(context, layers, files, started, seconds, len(labels), metrics), None


def _of_probe(name: str, found: LinearProbe) -> dict[str, Any]:
    values = {"C": found.strength, "folds": found.folds, "cv_accuracy": found.cv_accuracy, "converged": found.converged}
    return {f"{name}/{key}": value for key, value in values.items()}
