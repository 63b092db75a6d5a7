"""What a finished stage says of the training images, whatever it is: a network, a probe, or labels that were spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semisup.evaluate import predict_logits
from semisup.models.weights import load_weights
from semisup.stages.context import StageContext
from semisup.stages.features import features_of_images, look
from semisup.stages.head import build_head
from semisup.stages.planned import StagePlan
from semisup.stages.predictor import load_network
from semisup.stages.requirements import require_classifier
from semisup.stages.targets import TARGETS

__all__ = ["HEAD", "PROBE", "asked_too", "check_teacher", "predictions"]

HEAD, PROBE = "head.safetensors", "probe.safetensors"


def check_teacher(stage: StagePlan, key: str) -> None:
    """Refuse a train stage that predicts no classes.

    Raises:
        SemisupError: names the key and the stage.
    """
    if stage.config.kind == "train":
        require_classifier(stage, key)


def asked_too(stage: StagePlan) -> tuple[str, ...]:
    """Return what must be at hand besides a stage to ask it: the one whose features a probe or a head reads."""
    of = getattr(stage.config, "of", None)
    return () if of is None else (of,)


def predictions(context: StageContext, name: str, rows: np.ndarray | None = None) -> Tensor:
    """Return the probabilities (N, num_classes) that a stage gives to the training images, on the CPU.

    Args:
        context: of the stage that asks; the other one and `asked_too` are among its inputs.
        name: of a train stage that classifies, or a probe, head, propagate or relabel stage.
        rows: which images; None: all of them.
    """
    folder = context.inputs[name].folder
    if (folder / TARGETS).exists():
        targets: Tensor = load_weights(folder / TARGETS)["targets"]
        return targets if rows is None else targets[torch.from_numpy(rows)]
    if (folder / PROBE).exists():
        return _of_probe(context, folder, context.recipe.stages[name], rows)
    if (folder / HEAD).exists():
        return _of_head(context, folder, context.recipe.stages[name], rows)
    network = load_network(folder, context.device)
    return predict_logits(network, context.clean_batches(context.data.x_train, rows)).cpu().softmax(1)


def _of_probe(context: StageContext, folder: Path, probe: Any, rows: np.ndarray | None) -> Tensor:
    network = look(context.inputs[probe.of].folder, context.device, layers=probe.layers, grid=probe.grid)
    features = features_of_images(context, probe.of, network, "train", rows).cpu()
    last = list(network.split(features).values())[-1].double()
    linear = load_weights(folder / PROBE)
    return (last @ linear["weight"].T + linear["bias"]).softmax(1).float()


def _of_head(context: StageContext, folder: Path, stage: Any, rows: np.ndarray | None) -> Tensor:
    network = look(context.inputs[stage.of].folder, context.device)
    features = features_of_images(context, stage.of, network, "train", rows).cpu()
    head = build_head(features.shape[1], context.data.num_classes, stage.hidden, stage.dropout).eval()
    head.load_state_dict(load_weights(folder / HEAD))
    with torch.no_grad():
        said: Tensor = head(features).softmax(1)
    return said
