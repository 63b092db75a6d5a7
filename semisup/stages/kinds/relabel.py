"""The relabel stage: a teacher, or several, label the training images once and for all."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from semisup.config import StageConfig
from semisup.engine import generator
from semisup.errors import SemisupError
from semisup.evaluate import predict_logits
from semisup.stages.artifact import Artifact
from semisup.stages.context import StageContext
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictor import load_network
from semisup.stages.requirements import require_classifier
from semisup.stages.targets import save_targets, select

__all__ = ["inputs", "plan", "run"]


def inputs(stage: StageConfig) -> tuple[str, ...]:
    """Return the names of the earlier stages that a stage reads."""
    return tuple(dict.fromkeys(stage.teacher))


def plan(whole: Plan, name: str, stage: StageConfig, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a relabel stage.

    Raises:
        SemisupError: a teacher predicts no classes.
    """
    for teacher in stage.teacher:
        require_classifier(earlier[teacher], "teacher")
    return StagePlan(name=name, config=stage, inputs=inputs(stage), memory=whole.data.resident_bytes)


def run(context: StageContext) -> tuple[Artifact, None]:
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
        said = logits.softmax(1)
        if stage.relabel.vote == "labels":
            said = torch.nn.functional.one_hot(said.argmax(1), data.num_classes).float()
        probs += said / len(stage.teacher)
    pool, targets = select(probs, stage.relabel, generator(context.recipe.seed, context.name, "balance"))
    if not len(pool):
        raise SemisupError(
            f"stages.{context.name}.relabel.threshold: no image reaches {stage.relabel.threshold:g}; the most "
            f"confident one has {probs.max():.3f}"
        )
    return save_targets(context, pool, targets, started, len(probs) * len(stage.teacher)), None
