"""Metric losses: rows of one label lie close together, rows of different labels far apart.

Distances are Euclidean, between the rows as they are: where a paper compares unit vectors, the caller normalizes. The
label -1 means unknown, as everywhere here: such a row is in no pair. Where nothing is left to compare, loss and
gradient are 0.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision, without_autocast

__all__ = ["batch_hard_triplet", "contrastive_margin", "soft_nearest_neighbor", "triplet"]


def contrastive_margin(z: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Return the mean over all pairs of `d^2 / 2` (same label) and `max(0, margin - d)^2 / 2` (different labels).

    Hadsell, Chopra and LeCun, CVPR 2006, eq. 4, with the mean for its sum. Pairs that already lie right count, with
    0. (pytorch-metric-learning's loss of this name is linear in d and leaves them out of its mean.)

    Args:
        z: (N, D).
        labels: (N,) int64; -1 for rows to leave out.
        margin: >= 0, the distance from which different rows leave each other alone.

    Raises:
        SemisupError: `z` is not (N, D) with N >= 1, `labels` is not (N,), or the margin is negative.
    """
    _check(z, labels, margin)
    same, other = _pairs(labels)
    d = _distances(z)
    return _mean(torch.where(same, d, F.relu(margin - d)).square() / 2, same | other)


def triplet(
    z: Tensor,
    labels: Tensor,
    margin: float | None = 0.2,
    *,
    mining: Literal["all", "hard", "semi_hard", "easy"] = "all",
    squared: bool = True,
) -> Tensor:
    """Return the mean over mined triplets of `max(0, d(anchor, positive) - d(anchor, negative) + margin)`.

    Schroff, Kalenichenko and Philbin 2015 (FaceNet), arXiv:1503.03832, sec. 3. Triplets by kind: hard, the negative is
    no farther than the positive; semi-hard, farther, but by no more than the margin; easy, by more, so that the hinge
    is 0. The mean runs over all triplets of the kind, those with loss 0 too. Memory is N^3 floats: 8 MB for N = 128.

    Args:
        z: (N, D). The paper normalizes the rows.
        labels: (N,) int64; -1 for rows to leave out.
        margin: >= 0; paper: 0.2. None: the soft margin, `softplus(d - d)`, for which no triplet is semi-hard.
        mining: the kind of triplets to learn from.
        squared: compare squared distances, as the paper does.

    Raises:
        SemisupError: as `contrastive_margin`; an unknown kind; semi-hard triplets without a margin.
    """
    _check(z, labels, margin)
    if mining not in ("all", "hard", "semi_hard", "easy"):
        raise SemisupError(f"mining must be all, hard, semi_hard or easy, got {mining!r}")
    if mining == "semi_hard" and margin is None:
        raise SemisupError("mining semi_hard needs a margin; the soft margin (None) has no such triplets")
    same, other = _pairs(labels)
    d = _distances(z)
    d = d.square() if squared else d
    difference = d.unsqueeze(2) - d.unsqueeze(1)  # [a, p, n]
    mined = same.unsqueeze(2) & other.unsqueeze(1)
    slack = difference + (margin or 0.0)
    if mining == "hard":
        mined = mined & (difference >= 0)
    elif mining == "semi_hard":
        mined = mined & (difference < 0) & (slack >= 0)
    elif mining == "easy":
        mined = mined & (difference < 0) & (slack < 0)
    return _mean(_hinge(difference, margin), mined)


def batch_hard_triplet(z: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Return the mean over anchors of `max(0, d(farthest positive) - d(nearest negative) + margin)`.

    Hermans, Beyer and Leibe 2017, arXiv:1703.07737, eq. 5, with distances that are not squared. An anchor is no
    positive of its own. Anchors without a positive or without a negative do not count; draw batches that have both
    (the paper's P classes of K images). If all rows collapse, the value is `margin`, or log 2 with the soft margin.

    Args:
        z: (N, D). The paper leaves them as they are, S4L (arXiv:1905.03670) normalizes them.
        labels: (N,) int64 identities; -1 for rows to leave out.
        margin: >= 0. None: the soft margin, `softplus(d - d)` for the hinge.

    Raises:
        SemisupError: `z` is not (N, D) with N >= 1, `labels` is not (N,), or the margin is negative.
    """
    _check(z, labels, margin)
    same, other = _pairs(labels)
    d = _distances(z)
    farthest = torch.where(same, d, -torch.inf).amax(1)
    nearest = torch.where(other, d, torch.inf).amin(1)
    counts = same.any(1) & other.any(1)
    difference = torch.where(counts, farthest - nearest, 0.0)
    return _mean(_hinge(difference, margin), counts)


def soft_nearest_neighbor(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of `-log` of their own class's share of all others, weighted by `exp(-d^2 / T)`.

    Frosst, Papernot and Hinton 2019, arXiv:1902.01889, eq. 1. Rows that are alone in their class (the share would be
    0) do not count, but are neighbors of the others. With all rows at one distance the value is
    log((n - 1) / (n/c - 1)) for c classes of n/c rows.

    Args:
        z: (N, D).
        labels: (N,) int64; -1 for rows to leave out.
        temperature: T > 0, in squared distances.

    Raises:
        SemisupError: as `contrastive_margin`, or `temperature` is not positive.
    """
    _check(z, labels)
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
    same, other = _pairs(labels)
    counts = same.any(1)
    closeness = -_distances(z).square() / temperature
    # A row that does not count keeps all its entries: logsumexp of nothing has no gradient.
    nothing = ~counts.unsqueeze(1)
    shares = torch.where(same | other | nothing, closeness, -torch.inf).log_softmax(1)
    return _mean(-torch.where(same | nothing, shares, -torch.inf).logsumexp(1), counts)


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
