"""Losses of clustering on line: one view of an image says which cluster it is in, the others must say the same.

Views are stacked, (V, N, K): V views of N images, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision, without_autocast

__all__ = ["cross_view_cross_entropy", "self_distillation", "sinkhorn"]


def cross_view_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of `H(targets[g], softmax(logits[v]))` over all pairs of different views g, v and all N images.

    SwAV, arXiv:2006.09882, eq. 1 and 5, with main_swav.py's means for its sums; DINO, arXiv:2104.14294, eq. 3.
    Uniform logits cost log K.

    Args:
        logits: (V, N, K).
        targets: (G, N, K), of the first G <= V views; rows sum to 1. Gradient flows into them: detach what is a target.

    Raises:
        SemisupError: a shape other than these, or a single view, which has nobody to agree with.
    """
    if logits.ndim != 3 or targets.ndim != 3 or logits.shape[1:] != targets.shape[1:] or not logits.shape[1]:
        got = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise SemisupError(f"logits and targets must be (V, N, K) and (G, N, K) with N >= 1, got shapes {got}")
    views, assigned = len(logits), len(targets)
    if not 1 <= assigned <= views or views < 2:
        raise SemisupError(f"at least two views, and targets for one to all of them, got {views} and {assigned}")
    with without_autocast(logits):
        log_probs = full_precision(logits).log_softmax(2).flatten(1)
        # All pairs at once: entry (g, v) is N times minus the cross-entropy of view v.
        pairs = full_precision(targets).to(log_probs.dtype).flatten(1) @ log_probs.T
        own = torch.eye(assigned, views, dtype=torch.bool, device=pairs.device)
        return -pairs.masked_fill(own, 0.0).sum() / (assigned * (views - 1) * logits.shape[1])


def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Return the (N, K) codes of N images, of which clusters share the images evenly; each row sums to 1.

    They are `exp(scores / epsilon)`, rows and columns scaled in turns.

    SwAV, arXiv:2006.09882, eq. 3 and 4 (Sinkhorn and Knopp 1967), and main_swav.py. Rows are scaled last: they sum to 1
    after any number of iterations, the clusters' shares are only near N / K. Done on logarithms, where the published
    exponentials of 1 / epsilon would leave half precision; adding a constant to all scores changes nothing. A target:
    detach `scores`.

    Args:
        scores: (N, K), N >= 1.
        epsilon: > 0; the smaller, the harder the codes. Paper: 0.05.
        iterations: >= 1. Paper: 3.

    Raises:
        SemisupError: a shape other than this, or a value out of its range.
    """
    if scores.ndim != 2 or not len(scores):
        raise SemisupError(f"scores must be (N, K) with N >= 1, got shape {tuple(scores.shape)}")
    if not epsilon > 0 or iterations < 1:
        raise SemisupError(f"epsilon must be positive and iterations at least 1, got {epsilon} and {iterations}")
    logs = full_precision(scores) / epsilon
    for _ in range(iterations):
        logs = logs.log_softmax(0).log_softmax(1)
    return logs.exp()


def self_distillation(
    student: Tensor, teacher: Tensor, center: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Return `cross_view_cross_entropy` of the student's logits and the centered, sharpened teacher's.

    DINO, arXiv:2104.14294, eq. 1, 3 and algorithm 1: targets are `softmax((teacher - center) / teacher_temperature)`.
    Teacher and center get no gradient.

    Args:
        student: (V, N, K).
        teacher: (G, N, K), of the first G <= V views.
        center: (K,), the mean of the teacher's predictions; without it one cluster would take all images.
        student_temperature: > 0. Paper: 0.1.
        teacher_temperature: > 0, below the student's. Paper: 0.04 to 0.07.

    Raises:
        SemisupError: a shape other than these, or a temperature that is not positive.
    """
    if center.shape != teacher.shape[-1:]:
        raise SemisupError(f"center must have shape ({teacher.shape[-1]},), got {tuple(center.shape)}")
    if not (student_temperature > 0 and teacher_temperature > 0):
        raise SemisupError(f"temperatures must be positive, got {student_temperature} and {teacher_temperature}")
    centered = full_precision(teacher.detach()) - full_precision(center.detach())
    targets = (centered / teacher_temperature).softmax(-1)
    return cross_view_cross_entropy(full_precision(student) / student_temperature, targets)
