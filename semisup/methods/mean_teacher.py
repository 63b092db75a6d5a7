"""Mean Teacher: agree with the moving average of one's own weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from semisup.losses import mse_consistency
from semisup.methods.base import Batch, Fraction, Method, NonNegative, Progress, Update, Views
from semisup.methods.parts.ramps import gaussian_ramp
from semisup.methods.parts.together import together
from semisup.models import EMA, Classifier

__all__ = ["MeanTeacher"]


class MeanTeacher(Method):
    """Consistency with the moving average of the student's weights.

    L = CE(labeled) + w(t) * mean (1/C) ||p_student - p_teacher||^2, the teacher being the EMA of the student
    (Tarvainen & Valpola 2017, arXiv:1703.01780).

    The teacher runs in train mode with its own augmentation noise, BatchNorm statistics of its own and no gradient, as
    in the authors' PyTorch code. Its view of an image is another draw than the student's. The consistency term covers
    the unlabeled images, which include the labeled ones.

    Args:
        model: the student; the teacher starts as its copy.
        consistency: the weight's final value. Authors' TensorFlow code: 100; USB and TorchSSL: 50.
        ramp: part of the run over which w(t) = consistency * exp(-5 (1 - t/ramp)^2) rises, in [0, 1]. Authors: 40,000
            of 150,000 steps.
        decay: of the teacher's average, per step. Authors: 0.999 (0.99 during the ramp). It starts warm: the plain mean
            of all weights so far, until that forgets more slowly than `decay`.
    """

    name = "mean_teacher"
    family = "semi-supervised"
    summary = "Consistency with a teacher that is the moving average of the student's weights."
    averages = True
    citation = "Tarvainen & Valpola 2017, arXiv:1703.01780"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled={"student": "weak", "teacher": "weak"})

    def __init__(
        self, model: Classifier, *, consistency: NonNegative = 50.0, ramp: Fraction = 0.4, decay: Fraction = 0.999
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = EMA(model, decay, own_buffers=True)
        self.consistency = consistency
        self.ramp = ramp

    def weight(self, progress: Progress) -> float:
        """w(t): 0.0067 of the final value at the start, 0.2865 half-way up, 1 after the ramp."""
        return self.consistency * gaussian_ramp(progress, self.ramp)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the student, then of its average."""
        with torch.no_grad():
            target = self.teacher.module(batch.unlabeled["teacher"]).float().softmax(1)
        x, u = batch.labeled["weak"], batch.unlabeled["student"]
        logits, logits_u = together(self.model, x, u)
        supervised = batch.labeled.cross_entropy(logits)
        consistency = mse_consistency(logits_u, target)
        yield Update(
            supervised + self.weight(progress) * consistency,
            log={"supervised": supervised, "consistency": consistency},
        )
        self.teacher.update(self.model)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the student's parameters; the teacher follows."""
        return {"main": list(self.model.parameters())}

    def predictor(self) -> nn.Module:
        """Return the teacher."""
        return self.teacher.module
