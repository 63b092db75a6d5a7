"""Which images to label next: scores of single images, and orders that cover them all. Pure functions of arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["coverage", "disagreement", "entropy", "margin", "typical", "uncertain_and_different", "unit_rows"]

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]

MOST_CLUSTERS = 500
"""TypiClust's own limit; of more, a cluster has too few images for a density."""
NEIGHBORS = 20
"""Whose mean distance is the inverse of typicality (arXiv:2202.02794, eq. 4 and appendix F)."""
LEAST_IN_CLUSTER = 5
"""Smaller clusters are passed over as long as there are others (ibid., appendix F)."""
TIMES = 5
"""How many times as many uncertain images as are wanted are put into clusters (arXiv:1901.05954 has 10 to 50)."""


def margin(probs: Floats) -> Floats:
    """Return 1 - (best - second best probability), (N,) in [0, 1], of predictions (N, C >= 2): 1 is least sure.

    Scheffer, Decomain, Wrobel 2001, "best versus second best".
    """
    best = np.sort(probs, axis=1)
    gap: Floats = 1 - (best[:, -1] - best[:, -2])
    return gap


def entropy(probs: Floats) -> Floats:
    """Return the entropy of predictions (N, C) in nats, (N,) in [0, log C]."""
    found: Floats = -(probs * np.log(np.maximum(probs, 1e-12))).sum(1)
    return found


def disagreement(members: Sequence[Floats]) -> Floats:
    """Return the Jensen-Shannon divergence of several predictions (N, C) of the same images, (N,) in nats, >= 0.

    The entropy of the mean less the mean of the entropies (query by committee: McCallum and Nigam, ICML 1998).
    """
    mean = np.mean(members, axis=0)
    spread: Floats = entropy(mean) - np.mean([entropy(each) for each in members], axis=0)
    return np.maximum(spread, 0)


def unit_rows(features: Floats) -> Floats:
    """Return features (N, D) with rows of length 1, float32; a row of zeros stays one."""
    rows = features.astype(np.float32)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def typical(features: Floats, labeled: Rows, n: int, seed: int) -> Iterator[int]:
    """Yield rows to label, best first: the most typical one of each cluster that has no label yet, largest first.

    TypiClust (Hacohen, Dekel, Weinshall 2022, arXiv:2202.02794, algorithm 1): k-means of all images into as many
    clusters as there will be labels, at most 500; typicality is 1 / mean distance to the 20 nearest of the cluster.
    Then from the clusters with one label, and so on, until every row has been yielded.

    Args:
        features: (N, D).
        labeled: rows that have labels.
        n: how many labels are wanted.
        seed: of k-means.
    """
    x = unit_rows(features)
    clusters = _clusters(x, len(labeled) + n, seed)
    members = {c: np.flatnonzero(clusters == c) for c in np.unique(clusters)}
    waiting = {c: _by_typicality(x, rows, labeled) for c, rows in members.items()}
    labels = {c: int(np.isin(rows, labeled).sum()) for c, rows in members.items()}
    while any(waiting.values()):
        open_ = [c for c, left in waiting.items() if left]
        best = min(open_, key=lambda c: (len(members[c]) < LEAST_IN_CLUSTER, labels[c], -len(members[c]), c))
        labels[best] += 1
        yield waiting[best].pop(0)


def _by_typicality(x: Floats, rows: Rows, labeled: Rows) -> list[int]:
    """Return the unlabeled rows of a cluster, most typical first."""
    from sklearn.neighbors import NearestNeighbors

    k = min(NEIGHBORS + 1, len(rows))  # the nearest of each is itself
    distances, _ = NearestNeighbors(n_neighbors=k).fit(x[rows]).kneighbors(x[rows])
    order = rows[np.argsort(distances.sum(1), kind="stable")]
    unlabeled: list[int] = order[~np.isin(order, labeled)].tolist()
    return unlabeled


def coverage(features: Floats, labeled: Rows, n: int, seed: int) -> Iterator[int]:
    """Yield rows to label: of each cluster of k-means the one nearest to its center, those without labels first.

    Args:
        features: (N, D).
        labeled: rows that have labels.
        n: how many labels are wanted.
        seed: of k-means.
    """
    x = unit_rows(features)
    clusters = _clusters(x, len(labeled) + n, seed)
    sizes, known = np.bincount(clusters), np.bincount(clusters[labeled], minlength=clusters.max() + 1)
    centers = np.stack([x[clusters == c].mean(0) if sizes[c] else x[0] for c in range(len(sizes))])
    distance = np.linalg.norm(x - centers[clusters], axis=1)
    rank = np.empty(len(x), np.int64)  # place of each row in its own cluster
    for c in np.unique(clusters):
        rows = np.flatnonzero(clusters == c)
        rank[rows[np.argsort(distance[rows], kind="stable")]] = np.arange(len(rows))
    order = np.lexsort((-sizes[clusters], rank + known[clusters]))
    yield from (int(row) for row in order[~np.isin(order, labeled)])


def uncertain_and_different(features: Floats, labeled: Rows, n: int, seed: int, score: Floats) -> Iterator[int]:
    """Yield rows to label: the most uncertain one of each cluster of uncertain ones (Zhdanov 2019, arXiv:1901.05954).

    The 5 n rows with the greatest scores are put into n clusters by k-means weighted by the scores; after the first of
    each come the other rows, greatest score first.

    Args:
        features: (N, D).
        labeled: rows that have labels.
        n: how many labels are wanted.
        seed: of k-means.
        score: (N,), greatest first.
    """
    order = np.argsort(-score, kind="stable")
    order = order[~np.isin(order, labeled)]
    near = order[: TIMES * n]
    clusters = _clusters(unit_rows(features)[near], n, seed, np.maximum(score[near], 1e-6))
    _, first = np.unique(clusters, return_index=True)  # near is sorted by score
    chosen = near[np.sort(first)]
    yield from (int(row) for row in (*chosen, *order[~np.isin(order, chosen)]))


def _clusters(x: Floats, n: int, seed: int, weight: Floats | None = None) -> Rows:
    """Return the cluster of each row: k-means, by small batches where there are many rows."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    n = max(1, min(n, MOST_CLUSTERS, len(x)))
    small = len(x) * n < 200_000
    cls = KMeans if small else MiniBatchKMeans
    sizes = {} if small else {"batch_size": 5000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        found = cls(n, n_init=1, random_state=seed, **sizes).fit(x, sample_weight=weight)
    return np.asarray(found.labels_, np.int64)
