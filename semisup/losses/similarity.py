"""Relations between images: who resembles whom, and what that says about classes.

Rows of the matrices here are distributions over other images; as targets of `semisup.losses.soft_cross_entropy`
they are compared with the logits of `similarity`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision, without_autocast

__all__ = ["neighbor_predictions", "pseudo_label_graph", "similarity", "unfold_classes"]


def similarity(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return the (N, K) cosines of all pairs over `temperature`: logits of finding a query's like among the keys.

    Rows are ℓ2-normalized here. Nothing is detached.

    Args:
        queries: (N, D).
        keys: (K, D).
        temperature: > 0.

    Raises:
        SemisupError: a shape other than these, or a temperature that is not positive.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        got = f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        raise SemisupError(f"queries and keys must be (N, D) and (K, D), got shapes {got}")
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
    with without_autocast(queries):
        query, key = (F.normalize(full_precision(x), dim=1) for x in (queries, keys))
        return query @ key.T / temperature


def pseudo_label_graph(probs: Tensor, threshold: float) -> Tensor:
    """Return the (N, N) graph whose edge is the chance that two images have one class, each row divided by its sum.

    CoMatch, arXiv:2011.11183, and Train_CoMatch.py of salesforce/CoMatch: 1 for an image and itself, p_i · p_j
    elsewhere, and 0 where that is below `threshold`. Because of the loop no row is empty. A target: detach `probs`.

    Args:
        probs: (N, C), rows sum to 1.
        threshold: in [0, 1].

    Raises:
        SemisupError: `probs` is not a matrix, or `threshold` is outside [0, 1].
    """
    if probs.ndim != 2:
        raise SemisupError(f"probs must be (N, C), got shape {tuple(probs.shape)}")
    if not 0 <= threshold <= 1:
        raise SemisupError(f"threshold must lie in [0, 1], got {threshold}")
    with without_autocast(probs):
        p = full_precision(probs)
        agreement = p @ p.T
    loops = torch.eye(len(p), dtype=torch.bool, device=p.device)
    edges = torch.where(loops, 1.0, agreement * (agreement >= threshold))
    return edges / edges.sum(1, keepdim=True)


def neighbor_predictions(shares: Tensor, predictions: Tensor) -> Tensor:
    """Return (N, C): the mean of the keys' `predictions`, weighed by each row of `shares`; a classifier by neighbors.

    The memory smoothing of CoMatch, arXiv:2011.11183; with labels for predictions the "aggregating" of SimMatch,
    arXiv:2203.06915. A target: detach both.

    Args:
        shares: (N, K), rows sum to 1.
        predictions: (K, C), rows sum to 1.

    Raises:
        SemisupError: a shape other than these.
    """
    if shares.ndim != 2 or predictions.ndim != 2 or shares.shape[1] != len(predictions):
        got = f"{tuple(shares.shape)} and {tuple(predictions.shape)}"
        raise SemisupError(f"shares and predictions must be (N, K) and (K, C), got shapes {got}")
    with without_autocast(shares):
        return full_precision(shares) @ full_precision(predictions)


def unfold_classes(shares: Tensor, probs: Tensor, labels: Tensor) -> Tensor:
    """Return (N, K): `shares` of the keys times the probability of each key's class, each row divided by its sum.

    SimMatch, arXiv:2203.06915, "unfolding": keys of classes that the classifier does not believe in lose their part.
    A target: detach both.

    Args:
        shares: (N, K), rows sum to 1.
        probs: (N, C), rows sum to 1.
        labels: (K,) int64 in [0, C), the keys' classes.

    Raises:
        SemisupError: `labels` is not (K,), or `probs` has another number of rows than `shares`.
    """
    if shares.ndim != 2 or labels.shape != shares.shape[1:]:
        got = f"{tuple(shares.shape)} and {tuple(labels.shape)}"
        raise SemisupError(f"shares and labels must be (N, K) and (K,), got shapes {got}")
    if probs.ndim != 2 or len(probs) != len(shares):
        raise SemisupError(f"probs must be ({len(shares)}, C), one row per query, got shape {tuple(probs.shape)}")
    weighed = full_precision(shares) * full_precision(probs)[:, labels]
    # Where all keys' classes are impossible there is no target, and the row is 0 instead of 0/0.
    return weighed / weighed.sum(1, keepdim=True).clamp(min=torch.finfo(weighed.dtype).tiny)
