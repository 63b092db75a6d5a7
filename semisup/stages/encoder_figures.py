"""Figures of what a finished encoder has learned: files of its stage."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from semisup.data import take
from semisup.engine import Batches, seed_for
from semisup.evaluate import confusion_figure, confusion_matrix, predict_logits
from semisup.evaluate.figures import (
    embedding_figure,
    nearest_images,
    neighbors_figure,
    plane,
    reconstruction_figure,
)
from semisup.evaluate.forward import evaluating
from semisup.methods import Method
from semisup.stages.context import StageContext

__all__ = ["encoder_figures"]

IMAGES = 2000
"""Training images on the map and among which neighbors are looked for: a few seconds of features on a CPU."""
QUERIES, NEIGHBORS = 8, 8
REBUILT = 12
PREDICTIONS = 1000
"""Images whose predictions in the pretext task are counted, at least."""


def encoder_figures(context: StageContext, method: Method, encoder: nn.Module, batches: Batches) -> list[str]:
    """Write the figures of a finished encoder into its stage's folder; returns the names of the files.

    `neighbors.png` and `embedding.png` always, colored by the true classes where they are known (this is the
    evaluator: no weight learns from them); `reconstruction.png` and `pretext_confusion.png` where the method offers
    what they show. Training images only. The draws are seeded: a stage has the same figures each time it is run.
    """
    torch.manual_seed(seed_for(context.recipe.seed, context.name, "pictures"))
    data = context.data
    chosen = np.random.default_rng(seed_for(context.recipe.seed, context.name, "pictures")).permutation(
        len(data.x_train)
    )
    images, labels = take(data.x_train, chosen[:IMAGES]), data.y_train[chosen[:IMAGES]]
    features = predict_logits(encoder, context.clean_batches(images)).cpu()
    files = []
    if len(images) > NEIGHBORS:
        queries = _one_of_each(labels)
        near = nearest_images(features, queries, NEIGHBORS)
        known = labels if (labels >= 0).any() else None
        neighbors_figure(images, near, queries, known, context.folder / "neighbors.png")
        points, how = plane(features)
        title = f"{len(images):,} training images by the features of '{context.name}', {how}"
        embedding_figure(points, known, data.classes, title, context.folder / "embedding.png")
        files += ["neighbors.png", "embedding.png"]
    with evaluating(method):
        files += _reconstruction(context, method, images[:REBUILT]) + _pretext(context, method, batches)
    return files


def _one_of_each(labels: np.ndarray) -> Tensor:
    """Rows of the queries: the first image of each class in turn, then whatever comes."""
    _, first = np.unique(labels, return_index=True)
    order = dict.fromkeys([*np.sort(first).tolist(), *range(len(labels))])
    return torch.tensor(list(itertools.islice(order, QUERIES)))


def _reconstruction(context: StageContext, method: Method, images: np.ndarray) -> list[str]:
    (clean,) = context.clean_batches(images)
    rebuilt = method.reconstruct(clean)
    if rebuilt is None:
        return []
    undo = context.normalize().undo
    original, seen, made = (undo(x.float()) for x in (clean, *rebuilt))
    reconstruction_figure(original, seen, made, context.folder / "reconstruction.png")
    return ["reconstruction.png"]


def _pretext(context: StageContext, method: Method, batches: Batches) -> list[str]:
    """Predictions of the pretext task on batches that come after the last one that was trained on."""
    matrix: Tensor | None = None
    count = -(-PREDICTIONS // max(1, batches.images_per_step))
    for step in range(context.steps, context.steps + count):
        found = method.pretext_confusion(batches(step))
        if found is None:
            return []
        predictions, truth = (x.cpu() for x in found)
        counts = confusion_matrix(predictions.argmax(1), truth, predictions.shape[1])
        matrix = counts if matrix is None else matrix + counts
    assert matrix is not None
    names = [str(k) for k in range(len(matrix))]
    confusion_figure(matrix, names, context.folder / "pretext_confusion.png")
    return ["pretext_confusion.png"]
