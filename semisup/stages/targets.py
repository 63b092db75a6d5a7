"""What training may see: the images, the labels of the budget, and the pseudo-labels of an earlier stage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semisup.data import ImageData, LabelBudget, is_mapped
from semisup.engine import TrainingImages
from semisup.evaluate import pseudo_label_quality
from semisup.models.weights import load_weights, save_weights
from semisup.stages.artifact import Artifact, finish_untrained
from semisup.stages.context import StageContext
from semisup.stages.evaluation import hidden_labels

__all__ = ["TARGETS", "read_targets", "save_targets", "select", "stored_images", "training_images"]

TARGETS = "targets.safetensors"


def training_images(
    data: ImageData, budget: LabelBudget, relabeled: Artifact | None, rows: Tensor | None = None
) -> TrainingImages:
    """Return what training may see: images, the labels inside the budget, and the pseudo-labels that a stage left.

    Without pseudo-labels `rows` says which images unlabeled batches are made of; None: all of them.
    """
    pool, targets = (rows, None) if relabeled is None else read_targets(relabeled)
    return TrainingImages(
        images=stored_images(data),
        labeled_index=torch.from_numpy(budget.index),
        labels=torch.from_numpy(data.y_train[budget.index]),
        pool=pool,
        targets=targets,
    )


def stored_images(data: ImageData) -> Tensor | NDArray[np.uint8]:
    """Return the training images as a tensor, without a copy where that is allowed; a memory map as it is."""
    if is_mapped(data.x_train):
        return data.x_train
    writable = data.x_train.flags.writeable  # torch wants no others, though it never writes here
    return torch.from_numpy(data.x_train) if writable else torch.tensor(data.x_train)


def select(
    probs: Tensor,
    generator: torch.Generator,
    *,
    threshold: float = 0.0,
    per_class: int | None = None,
    soft: bool = True,
    balance: bool = False,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose and balance pseudo-labels (Noisy Student, arXiv:1911.04252, sec. 3.1: filter, then balance).

    Images below `threshold` are dropped. Of each guessed class, the `per_class` most confident stay. With `balance`,
    classes with fewer are topped up to the largest class (or to `per_class`) by repeating their images evenly; the
    remainder is a random choice among them. A class that nobody was assigned to stays empty.

    Args:
        probs: (N, C) ensembled teacher probabilities.
        generator: for the remainder.
        threshold: least confidence, in [0, 1].
        per_class: most images of a class; None: all.
        soft: return probabilities, not the best class.
        balance: repeat images of rarer classes.
        allowed: (N,) bool, which images may be chosen; None: all.

    Returns:
        Rows to train on (M,), with repeats, and targets (N, C): the probabilities, or one-hot guesses if not `soft`.
    """
    confidence, labels = probs.max(1)
    confident = confidence >= threshold if allowed is None else (confidence >= threshold) & allowed
    chosen = []
    for c in range(probs.shape[1]):
        rows = torch.nonzero((labels == c) & confident).flatten()
        rows = rows[confidence[rows].argsort(descending=True, stable=True)]
        chosen.append(rows if per_class is None else rows[:per_class])
    if balance:
        goal = per_class or max(len(rows) for rows in chosen)
        chosen = [_repeat(rows, goal, generator) for rows in chosen]
    targets = probs if soft else torch.nn.functional.one_hot(labels, probs.shape[1]).float()
    return torch.cat(chosen), targets


def _repeat(rows: Tensor, goal: int, generator: torch.Generator) -> Tensor:
    if not len(rows):
        return rows
    times, rest = divmod(goal, len(rows))
    return torch.cat([rows.repeat(times), rows[torch.randperm(len(rows), generator=generator)[:rest]]])


def save_targets(
    context: StageContext,
    pool: Tensor,
    targets: Tensor,
    started: float,
    images: int,
    tested: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write the pseudo-labels of a stage, compared with the hidden labels, and finish it.

    Args:
        context: of the stage.
        pool: (M,) rows to train on, with repeats.
        targets: (N, C) probabilities for all rows.
        started: when the stage did, by `time.perf_counter`.
        images: how many a network has seen for it.
        tested: metrics of what the labels come from, on test images.
    """
    save_weights(context.folder / TARGETS, {"pool": pool, "targets": targets})
    seconds = time.perf_counter() - started
    used = torch.zeros(len(targets))
    used[pool] = 1
    quality = pseudo_label_quality(targets.argmax(1), used, hidden_labels(context))
    metrics = {f"pseudo_labels/{name}": float(value) for name, value in quality.items()} | dict(tested or {})
    return finish_untrained(
        context.folder,
        [TARGETS, *(["confusion.png"] if (context.folder / "confusion.png").exists() else [])],
        metrics,
        name=context.name,
        kind=context.config.kind,
        seconds=seconds,
        images=images,
        origins=context.origins(),
    )


def read_targets(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """Rows (M,) and targets (N, C) that a relabel or propagate stage left."""
    tensors = load_weights(artifact.folder / TARGETS)
    return tensors["pool"], tensors["targets"]
