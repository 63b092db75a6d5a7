"""k-means of unit vectors, on the device where they are and without a word to the host."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["spherical_kmeans"]

CHUNK = 8192  # rows that are compared with all centroids at a time: 98 MB of similarities to 3,000 centroids


def spherical_kmeans(rows: Tensor, known: Tensor, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Cluster unit vectors by cosine, from random ones of them (`cluster_memory` of facebookresearch/swav).

    An empty cluster begins again at the row that lies farthest from its own centroid, the second empty one at the
    second farthest, ...; the reference leaves it where it is. Where there are fewer rows than clusters, some centroids
    are equal, and all but the first of them stay empty.

    Plain torch, not scikit-learn: its k-means is not spherical, and would copy the rows to the host once per
    clustering. This one waits for nothing, draws from the device's global generator and runs on the meta device.

    Args:
        rows: (M, D) of length 1.
        known: (M,) bool, which of them take part; at least one.
        clusters: K.
        iterations: of Lloyd's algorithm; 0 returns the rows that it would begin with.

    Returns:
        Centroids (K, D) of length 1 and the number of rows nearest to each of them, (K,) float.
    """
    count = known.sum()
    shuffled = (torch.rand(len(rows), device=rows.device) + known).argsort(
        descending=True
    )  # those that take part first
    each = torch.arange(clusters, device=rows.device)
    centroids = rows[shuffled[each % count]]
    for _ in range(iterations):
        sums, sizes, closeness = _members(rows, known, centroids)
        farthest = closeness.topk(min(clusters, len(rows)), largest=False).indices
        empty = sizes == 0
        beginnings = rows[farthest[(empty.cumsum(0) - 1).clamp(min=0) % count]]
        centroids = F.normalize(torch.where(empty[:, None], beginnings, sums), dim=1)
    return centroids, _members(rows, known, centroids)[1]


def _members(rows: Tensor, known: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(K, D) sum and (K,) number of each centroid's rows, and (M,) how close a row is; those unknown: infinitely."""
    sums, sizes = torch.zeros_like(centroids), torch.zeros_like(centroids[:, 0])
    closeness = []
    for part, counts in zip(rows.split(CHUNK), known.split(CHUNK), strict=True):
        nearest, labels = (part @ centroids.T).max(1)
        sums.index_add_(0, labels, part * counts[:, None])
        sizes.index_add_(0, labels, counts.to(sizes.dtype))
        closeness.append(torch.where(counts, nearest, torch.inf))
    return sums, sizes, torch.cat(closeness)
