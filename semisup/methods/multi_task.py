"""Multi-task self-supervision: several pretext tasks teach one encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import nn

from semisup.errors import SemisupError, nearest
from semisup.methods.aet import AETTask
from semisup.methods.base import Batch, Method, NonNegative, Progress, Update, Views
from semisup.methods.context_prediction import ContextPredictionTask
from semisup.methods.counting import CountingTask
from semisup.methods.jigsaw import JigsawTask
from semisup.methods.rotation import RotationTask
from semisup.models import Encoder

__all__ = ["MultiTask"]

TaskName = Literal["rotation", "jigsaw", "context_prediction", "counting", "aet"]
TASKS: dict[TaskName, Callable[[int], nn.Module]] = {
    "rotation": RotationTask,
    "jigsaw": JigsawTask,
    "context_prediction": ContextPredictionTask,
    "counting": CountingTask,
    "aet": AETTask,
}
"""What of each single method is made of the encoder's width and maps an encoder and a batch of images to a loss."""

FOUR: dict[TaskName, float] = {"rotation": 1.0, "jigsaw": 1.0, "context_prediction": 1.0, "aet": 1.0}


class MultiTask(Method):
    """L = sum over tasks of weight * its loss (Doersch and Zisserman 2017, arXiv:1708.07860, sec. 3).

    Each task is that of the method of its name with that method's defaults. It has a head of its own and its own
    forward, so that images which it prepares in its own way share no batch statistics with those of another. The paper
    gives every task its own batches on its own machine, and combines four others (relative position, colorization,
    exemplar, motion); here all see the same images in one update. Left out: the paper's harmonized input, its
    choice of layers by lasso and (recalled) an RMSProp of its own for each task, which evens out their gradients.

    Args:
        model: the bare encoder; the heads are next to it and are dropped afterwards.
        tasks: task -> weight >= 0 of its loss; 0 leaves it out. Tasks are rotation, jigsaw, context_prediction,
            counting and aet. Untrained they cost log 4, log 100, log 8, up to hundreds (give it a small weight) and
            about 1.

    Raises:
        SemisupError: an unknown task, or none with a weight.
    """

    name = "multi_task"
    family = "self-supervised"
    summary = "A weighted sum of pretext tasks on one encoder, each with its own head."
    citation = "Doersch & Zisserman 2017, arXiv:1708.07860"
    trains = "encoder"
    views = Views(unlabeled=("weak",))

    def __init__(self, model: Encoder, *, tasks: dict[TaskName, NonNegative] = FOUR) -> None:
        super().__init__()
        unknown = [name for name in tasks if name not in TASKS]
        if unknown:
            raise SemisupError(f"method.tasks: unknown pretext task '{unknown[0]}'{nearest(unknown[0], TASKS)}")
        self.encoder = model
        # In the order of the table: one recipe, however its keys are ordered, is one run.
        self.weights = {str(name): tasks[name] for name in TASKS if tasks.get(name, 0) > 0}
        if not self.weights:
            raise SemisupError(f"method.tasks: no pretext task has a weight above 0, got {tasks}")
        self.tasks = nn.ModuleDict({name: TASKS[name](model.num_features) for name in TASKS if name in self.weights})

    @staticmethod
    def conflicts(tasks: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between the options; see `semisup.options.check_options`."""
        if not any(weight > 0 for weight in tasks.values()):
            yield "tasks", f"must have a task with a weight above 0, not {tasks}"

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        images = batch.unlabeled["weak"]
        losses = {name: task(self.encoder, images) for name, task in self.tasks.items()}
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        yield Update(total, log=losses)

    def predictor(self) -> nn.Module:
        """Return the encoder without the heads."""
        return self.encoder
