"""Distillation: a student learns what its teacher predicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from semisup.losses import hinton_kd, soft_target_distillation
from semisup.methods.base import Batch, Fraction, Method, Positive, Progress, Update, Views, frozen
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["Distill"]


class Distill(Method):
    """L = (1 - alpha) CE(labels) + alpha * distillation loss on the unlabeled images.

    `form: simclr_v2` (Chen et al. 2020, arXiv:2006.10029, eq. 2-3) is the cross-entropy with the teacher's softened
    predictions, without a factor T^2; the official notebook multiplies by T^2, we follow the paper. `form: hinton`
    (Hinton et al. 2015, arXiv:1503.02531) is T^2 KL(teacher || student), whose gradient keeps its scale as T grows.
    Teacher and student see the same augmented image; the teacher is in eval mode. The unlabeled images include the
    labeled.

    Args:
        model: the student, of any architecture.
        teacher: the frozen predictor of an earlier stage.
        temperature: > 0, of both softmaxes. SimCLRv2: 0.1 (to itself) to 1.0 (to a smaller net); Hinton: 2 to 20.
        alpha: weight of the distillation term, in [0, 1]. SimCLRv2's default is 1: no labels.
        form: "simclr_v2" or "hinton".
        view: policy of the images, "weak" or "strong".
    """

    name = "distill"
    family = "distillation"
    summary = "A (smaller) student learns the softened predictions of a frozen teacher on unlabeled images."
    citation = "Hinton et al. 2015, arXiv:1503.02531; Chen et al. 2020, arXiv:2006.10029"

    def __init__(
        self,
        model: Classifier,
        teacher: nn.Module,
        *,
        temperature: Positive = 1.0,
        alpha: Fraction = 1.0,
        form: Literal["simclr_v2", "hinton"] = "simclr_v2",
        view: Literal["weak", "strong"] = "weak",
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = frozen(teacher)
        self.temperature = temperature
        self.alpha = alpha
        self.distillation_loss = {"simclr_v2": soft_target_distillation, "hinton": hinton_kd}[form]
        self.view = view
        self.views = Views(labeled=("weak",) if alpha < 1 else (), unlabeled=(view,))

    def train(self, mode: bool = True) -> Distill:
        """Set the mode of the student; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the student."""
        u = batch.unlabeled[self.view]
        with torch.no_grad():
            teacher_logits = self.teacher(u)
        if self.alpha == 1:
            loss = self.distillation_loss(self.model(u), teacher_logits, self.temperature)
            yield Update(loss, log={"distillation": loss})
            return
        x = batch.labeled["weak"]
        logits, logits_u = together(self.model, x, u)
        supervised = F.cross_entropy(logits.float(), batch.labeled.y)
        distillation = self.distillation_loss(logits_u, teacher_logits, self.temperature)
        yield Update(
            (1 - self.alpha) * supervised + self.alpha * distillation,
            log={"supervised": supervised, "distillation": distillation},
        )

    def predictor(self) -> nn.Module:
        """Return the student."""
        return self.model
