"""The relabel stage: a teacher, or several, label the training images once and for all."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from semisup.config import RelabelConfig
from semisup.engine import generator
from semisup.errors import SemisupError
from semisup.evaluate import predict_logits, pseudo_label_quality
from semisup.models.weights import load_weights, save_weights
from semisup.stages.artifact import Artifact, finish_untrained
from semisup.stages.context import StageContext
from semisup.stages.evaluation import hidden_labels
from semisup.stages.predictor import load_network

__all__ = ["read_targets", "relabel", "save_targets", "select"]


def select(probs: Tensor, config: RelabelConfig, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose and balance pseudo-labels (Noisy Student, arXiv:1911.04252, sec. 3.1: filter, then balance).

    Images below `threshold` are dropped. Of each guessed class, the `per_class` most confident stay. With `balance`,
    classes with fewer are topped up to the largest class (or to `per_class`) by repeating their images evenly; the
    remainder is a random choice among them. A class that nobody was assigned to stays empty.

    Args:
        probs: (N, C) ensembled teacher probabilities.
        config: `threshold` in [0, 1], `per_class` images or None, `soft`, `balance`.
        draws: for the remainder.

    Returns:
        Rows to train on (M,), with repeats, and targets (N, C): the probabilities, or one-hot guesses if not `soft`.
    """
    confidence, labels = probs.max(1)
    chosen = []
    for c in range(probs.shape[1]):
        rows = torch.nonzero((labels == c) & (confidence >= config.threshold)).flatten()
        rows = rows[confidence[rows].argsort(descending=True, stable=True)]
        chosen.append(rows if config.per_class is None else rows[: config.per_class])
    if config.balance:
        goal = config.per_class or max(len(rows) for rows in chosen)
        chosen = [_repeat(rows, goal, draws) for rows in chosen]
    targets = probs if config.soft else torch.nn.functional.one_hot(labels, probs.shape[1]).float()
    return torch.cat(chosen), targets


def _repeat(rows: Tensor, goal: int, draws: torch.Generator) -> Tensor:
    if not len(rows):
        return rows
    times, rest = divmod(goal, len(rows))
    return torch.cat([rows.repeat(times), rows[torch.randperm(len(rows), generator=draws)[:rest]]])


def relabel(context: StageContext) -> tuple[Artifact, None]:
    """Run a relabel stage: clean images, teachers in eval mode, probabilities averaged over teachers.

    Where the recipe draws a budget, the labeled images are relabeled like the others; the student's labeled
    batch has their true labels.
    """
    started = time.perf_counter()
    stage, data = context.config, context.data
    probs = torch.zeros(len(data.x_train), data.num_classes)
    for name in stage.teacher:
        teacher = load_network(context.inputs[name].folder, context.device)
        logits = predict_logits(teacher, context.clean_batches(data.x_train)).cpu()
        probs += logits.softmax(1) / len(stage.teacher)
    pool, targets = select(probs, stage.relabel, generator(context.recipe.seed, context.name, "balance"))
    if not len(pool):
        raise SemisupError(
            f"stages.{context.name}.relabel.threshold: no image reaches {stage.relabel.threshold:g}; the most "
            f"confident one has {probs.max():.3f}"
        )
    return save_targets(context, pool, targets, started, len(probs) * len(stage.teacher)), None


def save_targets(context: StageContext, pool: Tensor, targets: Tensor, started: float, images: int) -> Artifact:
    """Write the pseudo-labels of a stage, judged by the hidden labels, and finish it.

    Args:
        context: of the stage.
        pool: (M,) rows to train on, with repeats.
        targets: (N, C) probabilities for all rows.
        started: when the stage did, by `time.perf_counter`.
        images: how many a network has seen for it.
    """
    save_weights(context.folder / "targets.safetensors", {"pool": pool, "targets": targets})
    seconds = time.perf_counter() - started
    used = torch.zeros(len(targets))
    used[pool] = 1
    quality = pseudo_label_quality(targets.argmax(1), used, hidden_labels(context))
    metrics: dict[str, Any] = {f"pseudo_labels/{name}": float(value) for name, value in quality.items()}
    return finish_untrained(
        context.folder,
        ["targets.safetensors"],
        metrics,
        name=context.name,
        kind=context.config.kind,
        seconds=seconds,
        images=images,
    )


def read_targets(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """Rows (M,) and targets (N, C) that a relabel or propagate stage left."""
    tensors = load_weights(artifact.folder / "targets.safetensors")
    return tensors["pool"], tensors["targets"]
