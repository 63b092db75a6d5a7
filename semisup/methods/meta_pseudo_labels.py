"""Meta Pseudo Labels: a teacher that is rewarded when its labels make the student better."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.losses import pseudo_label_cross_entropy, soft_cross_entropy
from semisup.methods.base import (
    Batch,
    BelowOne,
    Fraction,
    Method,
    NonNegative,
    Positive,
    Progress,
    PseudoLabels,
    Update,
    Views,
)
from semisup.methods.parts.noise import with_dropout
from semisup.methods.parts.ramps import linear_ramp
from semisup.methods.parts.together import together
from semisup.models import Classifier, frozen_statistics

__all__ = ["MetaPseudoLabels"]


class MetaPseudoLabels(Method):
    """A teacher that learns from how much its labels help the student.

    Two networks in turn (Pham et al. 2021, arXiv:2003.10580, sec. 2 and algorithm 1):

    1. the student steps on CE(y, S(u_strong)), y drawn by the teacher;
    2. h = CE_l(student before) - CE_l(student after) on the labeled images: a first-order measure of how much y helped,
       eta * <grad CE_l(after), grad CE_u(before)>;
    3. the teacher steps on its UDA loss + h * CE(y, T(u_strong)), with the same y.

    The official TensorFlow code and kekmodel's port compute after - before, the opposite sign, and the former uses
    soft labels, whose gradient is identically zero. We follow the paper: before - after, and one hard y. The Taylor
    test in `tests/methods` holds the sign.

    The student's forwards on labeled images, whose loss is compared, leave BatchNorm's running statistics alone: these
    are then those of the images it learns from.

    The student sees only pseudo-labels; the paper ends by fine-tuning it on the labels: a following stage
    `{init: <this>, method: {name: supervised}}` does that.

    Args:
        model: the student.
        second: the teacher, a network of the same architecture with a random start of its own.
        teacher_uda_weight: final weight of the teacher's consistency term. Paper (CIFAR-10): 8; ImageNet: 20.
        uda_ramp: part of the run over which that weight rises linearly from 0, in [0, 1]. Paper: 5,000
            of 300,000 steps.
        uda_temperature: sharpens the teacher's weak predictions, > 0. Paper: 0.7.
        uda_threshold: least confidence of a used weak prediction, sharpened as it is used, in [0, 1]. Paper: 0.6.
        label_smoothing: on the teacher's labeled and the student's loss, in [0, 1). Paper: 0.15.
        student_start: part of the run in which only the teacher learns, in [0, 1). Paper: 3,000 of 300,000 steps.
        baseline_decay: of the running mean that is subtracted from h to reduce its variance (official code: 0.99);
            0 subtracts nothing.
        hard: y = argmax instead of a draw from the teacher's distribution.
        dropout: of both networks, on the features before the head, in [0, 1). Paper: 0.2.
    """

    name = "meta_pseudo_labels"
    family = "semi-supervised"
    summary = "A teacher learns to give the pseudo-labels that most improve its student on the labeled images."
    citation = "Pham et al. 2021, arXiv:2003.10580"
    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    baseline: Tensor

    def __init__(
        self,
        model: Classifier,
        second: Classifier,
        *,
        teacher_uda_weight: NonNegative = 8.0,
        uda_ramp: Fraction = 0.1,
        uda_temperature: Positive = 0.7,
        uda_threshold: Fraction = 0.6,
        label_smoothing: BelowOne = 0.15,
        student_start: BelowOne = 0.01,
        baseline_decay: BelowOne = 0.99,
        hard: bool = False,
        dropout: BelowOne = 0.0,
    ) -> None:
        super().__init__()
        self.student = model
        self.teacher = second
        self.teacher_uda_weight = teacher_uda_weight
        self.uda_ramp = uda_ramp
        self.uda_temperature = uda_temperature
        self.uda_threshold = uda_threshold
        self.label_smoothing = label_smoothing
        self.student_start = student_start
        self.baseline_decay = baseline_decay
        self.hard = hard
        self.dropout = dropout
        self.register_buffer("baseline", torch.zeros(()))

    def student_loss(self, batch: Batch) -> Tensor:
        """CE_l of the student on the labeled images, train mode, no gradient: what h compares."""
        with torch.no_grad(), frozen_statistics(self.student):
            return F.cross_entropy(
                with_dropout(self.student, self.dropout)(batch.labeled["weak"]).float(), batch.labeled.y
            )

    def draw_labels(self, logits: Tensor) -> Tensor:
        """Return y (U,): one class per image from the teacher's logits (U, C)."""
        if self.hard:
            return logits.argmax(1)
        # Gumbel-max: an exact draw from softmax(logits) that stays on the device, `meta` included.
        noise = -torch.empty_like(logits).exponential_().log()
        return (logits + noise).argmax(1)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Student's turn, then teacher's."""
        teacher, student = (with_dropout(network, self.dropout) for network in (self.teacher, self.student))
        x, weak, strong = batch.labeled["weak"], batch.unlabeled["weak"], batch.unlabeled["strong"]
        with torch.no_grad():
            sharpened = (teacher(weak).float() / self.uda_temperature).softmax(1)
            mask = (sharpened.amax(1) >= self.uda_threshold).float()
        # One teacher forward gives the labels now and carries the teacher's gradient later: its weights do not change
        # while the student steps.
        logits, logits_strong = (part.float() for part in together(teacher, x, strong))
        labels = self.draw_labels(logits_strong.detach())

        help_ = torch.zeros((), device=x.device)
        if progress.fraction >= self.student_start:
            before = self.student_loss(batch)
            loss = F.cross_entropy(student(strong).float(), labels, label_smoothing=self.label_smoothing)
            yield Update(
                loss,
                group="student",
                log={"student": loss},
                pseudo_labels=PseudoLabels(batch.unlabeled.index, labels, torch.ones_like(mask)),
            )
            help_ = before - self.student_loss(batch)
            if self.baseline_decay:
                self.baseline.lerp_(help_, 1 - self.baseline_decay)
                help_ = help_ - self.baseline

        supervised = F.cross_entropy(logits, batch.labeled.y, label_smoothing=self.label_smoothing)
        ramp = linear_ramp(progress, self.uda_ramp)
        uda = soft_cross_entropy(logits_strong, sharpened, mask)
        feedback = help_ * pseudo_label_cross_entropy(logits_strong, labels, torch.ones_like(mask))
        yield Update(
            supervised + ramp * self.teacher_uda_weight * uda + feedback,
            group="teacher",
            log={"teacher_supervised": supervised, "teacher_uda": uda, "feedback": feedback, "help": help_},
        )

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each network, for an optimizer of its own."""
        return {"student": list(self.student.parameters()), "teacher": list(self.teacher.parameters())}

    def predictor(self) -> nn.Module:
        """Return the student."""
        return self.student
