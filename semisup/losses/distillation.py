"""A student learns a fixed teacher's softened predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision

__all__ = ["hinton_kd", "soft_target_distillation"]


def hinton_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `T^2 * mean over N of KL(softmax(teacher / T) || softmax(student / T))`; 0 when the logits agree.

    Hinton, Vinyals and Dean, arXiv:1503.02531, section 2. T^2 keeps the gradient's scale as T grows, so that a mixing
    weight with the labeled loss need not be tuned again. Teacher logits get no gradient.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C) for the same augmented images.
        temperature: T > 0; the paper uses 2 to 20.

    Raises:
        SemisupError: the shapes differ or `temperature` is not positive.
    """
    _check(student_logits, teacher_logits, temperature)
    log_student = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    log_teacher = F.log_softmax(full_precision(teacher_logits.detach()) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def soft_target_distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the mean over N of the cross-entropy from softmax(teacher / τ) to softmax(student / τ).

    SimCLRv2, arXiv:2006.10029, eq. 2, with a mean over images for the paper's sum. A cross-entropy without T^2: its
    minimum is the teacher's entropy, not 0, and its gradient is 1/T^2 of that of `hinton_kd`. Teacher logits
    get no gradient.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C) for the same augmented images.
        temperature: τ > 0; the paper uses 0.1 for self-distillation and 1.0 from a big to a small network.

    Raises:
        SemisupError: the shapes differ or `temperature` is not positive.
    """
    _check(student_logits, teacher_logits, temperature)
    teacher = F.softmax(full_precision(teacher_logits.detach()) / temperature, dim=1)
    return F.cross_entropy(full_precision(student_logits) / temperature, teacher)


def _check(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    if student_logits.shape != teacher_logits.shape:
        student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
        raise SemisupError(f"student and teacher logits must have the same shape, got {student} and {teacher}")
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
