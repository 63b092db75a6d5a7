"""A student learns a fixed teacher's softened predictions, or its features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision
from semisup.losses.similarity import similarity

__all__ = ["feature_cosine", "feature_mse", "hinton_kd", "queue_distillation", "soft_target_distillation"]


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


def feature_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over N of 1 - cos(student, teacher), in [0, 2]. The teacher gets no gradient.

    Args:
        student: (N, D).
        teacher: (N, D) of the same images.

    Raises:
        SemisupError: the shapes differ.
    """
    _check_features(student, teacher)
    return 1 - F.cosine_similarity(full_precision(student), full_precision(teacher.detach()), dim=1).mean()


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference over N and D. The teacher gets no gradient.

    Args:
        student: (N, D).
        teacher: (N, D) of the same images.

    Raises:
        SemisupError: the shapes differ.
    """
    _check_features(student, teacher)
    return F.mse_loss(full_precision(student), full_precision(teacher.detach()))


def queue_distillation(
    student: Tensor, teacher: Tensor, queue: Tensor, temperature: float, filled: Tensor | None = None
) -> Tensor:
    """Return the mean over N of the cross-entropy between whom teacher and student resemble in a queue.

    The probabilities are softmax(cos(row, queue) / temperature). SEED, arXiv:2101.04731, eq. 4 (with one temperature
    for both, and an image's own embedding in the queue if the caller has put it there). The teacher gets no gradient.

    Args:
        student: (N, D).
        teacher: (N, D) of the same images.
        queue: (K, D) embeddings of the teacher.
        temperature: > 0.
        filled: (K,) bool, which rows of the queue count; None: all.

    Raises:
        SemisupError: the shapes differ or `temperature` is not positive.
    """
    _check_features(student, teacher)
    logits = [similarity(rows, queue.detach(), temperature) for rows in (student, teacher.detach())]
    if filled is not None:
        logits = [each.masked_fill(~filled, torch.finfo(each.dtype).min) for each in logits]
    return F.cross_entropy(logits[0], logits[1].softmax(1))


def _check_features(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        got = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise SemisupError(f"student and teacher features must both be (N, D), got shapes {got}")


def _check(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    if student_logits.shape != teacher_logits.shape:
        student, teacher = tuple(student_logits.shape), tuple(teacher_logits.shape)
        raise SemisupError(f"student and teacher logits must have the same shape, got {student} and {teacher}")
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
