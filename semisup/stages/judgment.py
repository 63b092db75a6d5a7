"""The probe and knn stages: what the labels of the budget can read off the features of a frozen network."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.evaluate import LinearProbe, fit_probe, knn_predict, predict_logits
from semisup.methods.base import frozen
from semisup.models import count_parameters
from semisup.models.weights import save_weights
from semisup.stages.artifact import Artifact, finish_untrained
from semisup.stages.context import StageContext
from semisup.stages.evaluation import evaluate_test, evaluate_validation
from semisup.stages.predictor import load_features

__all__ = ["knn", "probe", "unchanged"]

MOST_NEIGHBORS = 200
"""NPID's k (arXiv:1805.01978, sec. 3.4), whose bank is all of ImageNet."""


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Make sure that no bit of a network's weights and buffers (BN statistics) is another one afterwards.

    Raises:
        AssertionError: names what has changed. That is a bug, not a mistake of the user.
    """
    before = _checksums(network)
    yield
    after = _checksums(network)
    changed = [name for name, checksum in after.items() if checksum != before[name]]
    if changed:
        raise AssertionError(f"judging has changed the network: {', '.join(changed)}")


def _checksums(network: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in network.state_dict().items()
    }


class Layers(nn.Module):
    """Features (N, D) of a network and, where asked for, the averaged maps of its layers before them, side by side.

    Args:
        network: backbone and neck, as `load_features` gives them.
        layers: whether to look at the layers; the backbone then has `maps`.
        grid: a map becomes the means of its grid x grid parts, D = channels * grid^2. Above 1 the backbone has `maps`,
            and there is no neck, which takes one mean.
    """

    def __init__(self, network: nn.Module, *, layers: bool = False, grid: int = 1) -> None:
        super().__init__()
        self.network = network
        self.layers = layers
        self.grid = grid
        self.widths: dict[str, int] = {}
        """Name -> columns of the last output, in their order: layer1, layer2, ..., features."""

    def forward(self, images: Tensor) -> Tensor:
        parts: dict[str, Tensor] = {}
        if self.layers or self.grid > 1:
            backbone, neck = self.network.children()
            maps: list[Tensor] = backbone.maps(images)  # type: ignore[operator]
            looked_at = list(enumerate(maps, start=1))[0 if self.layers else -1 :]
            parts = {f"layer{i}": F.adaptive_avg_pool2d(each, self.grid).flatten(1) for i, each in looked_at}
            if len(list(neck.children())):
                parts["features"] = neck(parts[f"layer{len(maps)}"])
        else:
            parts["features"] = self.network(images)
        self.widths = {name: part.shape[1] for name, part in parts.items()}
        return torch.cat(list(parts.values()), dim=1)

    def split(self, features: Tensor) -> dict[str, Tensor]:
        """The parts of an output by their names."""
        return dict(zip(self.widths, features.split(list(self.widths.values()), dim=1), strict=True))


def probe(context: StageContext) -> tuple[Artifact, None]:
    """Run a probe stage: logistic regression on the frozen features of the budget's images.

    Nothing but the budget's labels decides about it, regularization included. `test/...` judge the last layer, which is
    what a classifier's head would see: never the layer that does best on test. `cv_accuracy` is what the labels
    themselves say of each layer. The features of the labeled images stay in `features.safetensors`.
    """
    started = time.perf_counter()
    data, budget = context.data, context.budget
    network = _frozen_network(context)
    layers = Layers(network, layers=context.config.probe.layers, grid=context.config.probe.grid)
    with unchanged(network):
        features = layers.split(predict_logits(layers, context.clean_batches(data.x_train, budget.index)).cpu())
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
            test = layers.split(predict_logits(layers, context.clean_batches(data.x_test)).cpu())
            y_test = torch.from_numpy(data.y_test)
            answers = {name: each.logits(test[name], data.num_classes) for name, each in probes.items()}
            metrics |= evaluate_test(context, answers[last])
            for name in probes if context.config.probe.layers else ():
                metrics |= _of_probe(name, probes[name])
                metrics[f"{name}/accuracy"] = float((answers[name].argmax(1) == y_test).double().mean())
    return _finish(context, network, ["features.safetensors"], started, seconds, len(labels), metrics), None


def _of_probe(name: str, found: LinearProbe) -> dict[str, Any]:
    values = {"C": found.strength, "folds": found.folds, "cv_accuracy": found.cv_accuracy, "converged": found.converged}
    return {f"{name}/{key}": value for key, value in values.items()}


def knn(context: StageContext) -> tuple[Artifact, None]:
    """Run a knn stage: the labels of an image's nearest ones in feature space vote.

    With `bank: labels` the voters are the budget's images, and the result is a few-label result, `test/...`. With
    `bank: all` they are all training images whose label anybody knows, hidden ones too: `knn/accuracy`, a look at the
    features that has no `test/accuracy` for a table of few-label results to take up.
    """
    started = time.perf_counter()
    data, budget, config = context.data, context.budget, context.config.knn
    every_label = config.bank == "all"
    index = np.flatnonzero(data.y_train >= 0) if every_label else budget.index
    network = Layers(_frozen_network(context), grid=config.grid)
    k = min(MOST_NEIGHBORS, max(1, len(index) // data.num_classes)) if config.k is None else min(config.k, len(index))
    metrics: dict[str, Any] = {"knn/bank": len(index), "knn/k": k}
    with unchanged(network):
        bank = predict_logits(network, context.clean_batches(data.x_train, index))
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
    return _finish(context, network, [], started, seconds, len(index), metrics), None


def _frozen_network(context: StageContext) -> nn.Module:
    assert context.config.of is not None
    return frozen(load_features(context.inputs[context.config.of].folder, context.device))


def _finish(
    context: StageContext,
    network: nn.Module,
    files: list[str],
    started: float,
    seconds: float,
    images: int,
    metrics: dict[str, Any],
) -> Artifact:
    """Write the stage's record; `seconds` and `images` are of what was learned from, the rest was judging."""
    if "test/confusion" in metrics:
        files = [*files, "confusion.png"]
    return finish_untrained(
        context.folder,
        files,
        metrics,
        name=context.name,
        kind=context.config.kind,
        seconds=seconds,
        images=images,
        evaluation_seconds=time.perf_counter() - started - seconds,
        parameters=count_parameters(network),
    )
