"""Metric losses: rows of one label lie close together, rows of different labels far apart.

Distances are Euclidean, between the rows as they are: where a paper compares unit vectors, the caller normalises. The
label -1 means unknown, as everywhere here: such a row is in no pair. Where nothing is left to compare, loss and
gradient are 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision, without_autocast

__all__ = ["batch_hard_triplet"]


def batch_hard_triplet(z: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Return the mean over anchors of ``max(0, d(farthest positive) - d(nearest negative) + margin)``.

    Hermans, Beyer and Leibe 2017, arXiv:1703.07737, eq. 5, with distances that are not squared. An anchor is no
    positive of its own. Anchors without a positive or without a negative do not count; draw batches that have both
    (the paper's P classes of K images). If all rows collapse, the value is ``margin``, or log 2 with the soft margin.

    Args:
        z: (N, D). The paper leaves them as they are, S4L (arXiv:1905.03670) normalises them.
        labels: (N,) int64 identities; -1 for rows to leave out.
        margin: >= 0. None: the soft margin, ``softplus(d - d)`` for the hinge.

    Raises:
        SemisupError: ``z`` is not (N, D) with N >= 1, ``labels`` is not (N,), or the margin is negative.
    """
    _check(z, labels, margin)
    same, other = _pairs(labels)
    d = _distances(z)
    farthest = torch.where(same, d, -torch.inf).amax(1)
    nearest = torch.where(other, d, torch.inf).amin(1)
    counts = same.any(1) & other.any(1)
    difference = torch.where(counts, farthest - nearest, 0.0)
    return _mean(_hinge(difference, margin), counts)


def _distances(z: Tensor) -> Tensor:
    """(N, N) distances. Differences of rows, not |a|^2 + |b|^2 - 2ab: exact near 0; the gradient of distance 0 is 0."""
    with without_autocast(z):
        x = full_precision(z)
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N) bool: pairs of two different rows with the same known label, and with different known labels."""
    known = (labels >= 0) & (labels >= 0).unsqueeze(1)
    equal = labels == labels.unsqueeze(1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return known & equal & ~itself, known & ~equal


def _hinge(difference: Tensor, margin: float | None) -> Tensor:
    return F.softplus(difference) if margin is None else F.relu(difference + margin)


def _mean(losses: Tensor, counts: Tensor) -> Tensor:
    """Mean over the entries that count; 0 if there are none."""
    return torch.where(counts, losses, 0.0).sum() / counts.sum().clamp(min=1)


def _check(z: Tensor, labels: Tensor, margin: float | None = None) -> None:
    if z.ndim != 2 or not len(z):
        raise SemisupError(f"z must be (N, D) with N >= 1, got shape {tuple(z.shape)}")
    if labels.shape != z.shape[:1]:
        raise SemisupError(f"labels must have shape ({z.shape[0]},), one per row, got {tuple(labels.shape)}")
    if margin is not None and not margin >= 0:
        raise SemisupError(f"margin must be at least 0, got {margin}")
