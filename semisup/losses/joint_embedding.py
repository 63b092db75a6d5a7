"""Two views of an image are alike, without negatives; what keeps all images from becoming alike is in here too.

Nothing is detached: where a branch is a target, the method detaches it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision, without_autocast

__all__ = ["barlow_twins", "covariance_penalty", "negative_cosine", "variance_hinge"]


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over N rows of `-cos(prediction, target)`, in [-1, 1].

    SimSiam, arXiv:2011.10566, eq. 1. BYOL's squared distance of unit vectors (arXiv:2006.07733, eq. 2) is twice this
    plus 2.

    Args:
        predictions: (N, D), N >= 1; ℓ2-normalized here.
        targets: (N, D), likewise.

    Raises:
        SemisupError: the shapes are not (N, D), or differ.
    """
    _check_pair(predictions, targets)
    p, z = (F.normalize(full_precision(x), dim=1) for x in (predictions, targets))
    return -(p * z).sum(1).mean()


def barlow_twins(first: Tensor, second: Tensor, redundancy_weight: float = 0.0051) -> Tensor:
    """Return `sum_i (1 - C_ii)^2 + redundancy_weight * sum_{i != j} C_ij^2`, C the cross-correlation of two views.

    Barlow Twins, arXiv:2103.03230, eq. 1 and 2: every feature is standardized over the batch, by its mean and the root
    of its biased variance (plus 1e-5, BatchNorm's, as in the authors' code). Sums over features, not means: of D
    constant features the value is D. Memory is D^2 floats.

    Args:
        first: (N, D), N >= 1; of one row nothing is left to learn from, and the value is D.
        second: (N, D), the other views.
        redundancy_weight: λ >= 0. Paper: 0.005; authors' code: 0.0051.

    Raises:
        SemisupError: the shapes are not (N, D), or differ, or the weight is negative.
    """
    _check_pair(first, second)
    if not redundancy_weight >= 0:
        raise SemisupError(f"redundancy_weight must be at least 0, got {redundancy_weight}")
    with without_autocast(first):
        a, b = (_standardize(full_precision(z)) for z in (first, second))
        correlation = a.T @ b / len(a)
        same = correlation.diagonal()
        return (1 - same).square().sum() + redundancy_weight * _off_diagonal(correlation).square().sum()


def variance_hinge(z: Tensor) -> Tensor:
    """Return the mean over D features of `max(0, 1 - std)`, std the root of the unbiased variance plus 1e-4.

    VICReg, arXiv:2105.04906, eq. 1 and 2, with the paper's target of 1 and its ε. 0.99 where all rows are equal; the
    gradient is then 0, and grows with the first difference.

    Args:
        z: (N, D), N >= 2.

    Raises:
        SemisupError: `z` is not (N, D) with N >= 2.
    """
    _check_spread(z)
    return F.relu(1 - (full_precision(z).var(0) + 1e-4).sqrt()).mean()


def covariance_penalty(z: Tensor) -> Tensor:
    """Return `sum_{i != j} cov_ij^2 / D`, cov the unbiased covariance of D features.

    VICReg, arXiv:2105.04906, eq. 3 and 4. Memory is D^2 floats.

    Args:
        z: (N, D), N >= 2.

    Raises:
        SemisupError: `z` is not (N, D) with N >= 2.
    """
    _check_spread(z)
    with without_autocast(z):
        x = full_precision(z)
        x = x - x.mean(0)
        covariance = x.T @ x / (len(x) - 1)
        return _off_diagonal(covariance).square().sum() / x.shape[1]


def _standardize(z: Tensor) -> Tensor:
    variance, mean = torch.var_mean(z, 0, correction=0)
    return (z - mean) / (variance + 1e-5).sqrt()


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Return the matrix with zeros on its diagonal."""
    return matrix - matrix.diagonal().diag_embed()


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or not len(first) or first.shape != second.shape:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise SemisupError(f"the two views must both be (N, D) with N >= 1, got shapes {got}")


def _check_spread(z: Tensor) -> None:
    if z.ndim != 2 or len(z) < 2:
        raise SemisupError(f"z must be (N, D) with N >= 2, got shape {tuple(z.shape)}")
