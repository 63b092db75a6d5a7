"""Weighted nearest neighbors on frozen features: a training-free look at a representation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError

__all__ = ["SIMILARITIES", "knn_accuracy", "knn_predict"]

SIMILARITIES = 2**26
"""Most similarities in memory at once, of 4 bytes: 256 MiB."""


def knn_predict(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Return (M, C) class scores: the sum of `exp(cosine / τ)` over the k nearest of the bank, by class.

    NPID, arXiv:1805.01978, section 3.4. Each row is divided by its largest term, which changes no ranking and keeps
    exp from overflowing, so τ -> inf gives the class counts among the k nearest.

    Args:
        features: (B, D) bank, B >= 1.
        labels: (B,) int64 classes of the bank in [0, num_classes); leave unlabeled (-1) images out of the bank.
        queries: (M, D), on the bank's device.
        num_classes: C.
        k: neighbors, >= 1; at most B are used.
        temperature: τ > 0.
        chunk: most queries per matrix product; fewer where the bank is so large (B > 65 536) that the similarities
            would take more than 256 MiB.

    Raises:
        SemisupError: shapes that do not match, a label out of range, or `k` or `temperature` not positive.
    """
    if features.ndim != 2 or not len(features) or queries.ndim != 2 or queries.shape[1] != features.shape[1]:
        raise SemisupError(
            "features must be (B, D) with B >= 1 and queries (M, D), "
            f"got shapes {tuple(features.shape)} and {tuple(queries.shape)}"
        )
    if labels.shape != features.shape[:1]:
        raise SemisupError(f"labels must have shape ({len(features)},), got {tuple(labels.shape)}")
    if bool(((labels < 0) | (labels >= num_classes)).any()):
        low, high = int(labels.min()), int(labels.max())
        raise SemisupError(f"labels must lie in [0, {num_classes}), got values from {low} to {high}")
    if k < 1 or not temperature > 0:
        raise SemisupError(f"k must be at least 1 and temperature positive, got k={k}, temperature={temperature}")
    scores = torch.zeros(len(queries), num_classes, device=features.device)
    # Autocast would compute the similarities in bfloat16, too coarse to rank neighbors by.
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        bank = F.normalize(features.float(), dim=1)
        chunk = max(1, min(chunk, SIMILARITIES // len(bank)))
        for start in range(0, len(queries), chunk):
            query = F.normalize(queries[start : start + chunk].float(), dim=1)
            similarity, neighbors = (query @ bank.T).topk(min(k, len(bank)), dim=1)  # sorted, nearest first
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
            scores[start : start + chunk].scatter_add_(1, labels[neighbors], weights)
    return scores


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """Return the fraction of queries whose best class by `knn_predict` is their label.

    Args:
        features: (B, D) bank.
        labels: (B,) classes of the bank.
        queries: (M, D), M >= 1.
        query_labels: (M,) int64.
        num_classes: C.
        k: as in `knn_predict`.
        temperature: as in `knn_predict`.
        chunk: as in `knn_predict`.

    Raises:
        SemisupError: as `knn_predict`, or `query_labels` is not (M,) with M >= 1.
    """
    if not len(queries) or query_labels.shape != queries.shape[:1]:
        raise SemisupError(
            f"queries and query_labels must have M >= 1 rows each, got {len(queries)} and {tuple(query_labels.shape)}"
        )
    scores = knn_predict(features, labels, queries, num_classes=num_classes, k=k, temperature=temperature, chunk=chunk)
    return float((scores.argmax(dim=1) == query_labels).double().mean())
