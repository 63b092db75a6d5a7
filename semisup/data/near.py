"""Images that are nearly the same picture: saved again, scaled, brighter. By their pixels, whatever a network sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.data.rows import take

__all__ = ["NEAR", "groups", "same_picture", "thumbnails", "without_copies"]

SIDE = 16
"""Of a thumbnail, pixels."""
NEAR = 0.995
"""Correlation of two thumbnails from which they count as one picture."""
CHUNK = 1024


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images (N, S, S, C) as gray thumbnails of at most 16 x 16, mean 0 and length 1, (N, D).

    The product of two rows is their correlation, which another brightness or contrast leaves as it is. A picture of
    one color is a row of zeros, and near nothing.
    """
    size = images.shape[1]
    side = min(SIDE, size)
    edges = np.linspace(0, size, side + 1).round().astype(int)
    parts = []
    for start in range(0, len(images), CHUNK):
        gray = take(images, slice(start, start + CHUNK)).mean(3, dtype=np.float32)
        small = np.add.reduceat(np.add.reduceat(gray, edges[:-1], 1), edges[:-1], 2)
        small /= np.outer(np.diff(edges), np.diff(edges))
        flat = small.reshape(len(gray), -1)
        flat -= flat.mean(1, keepdims=True)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        parts.append(np.where(length > side, flat / np.maximum(length, 1e-6), 0).astype(np.float32))
    return np.concatenate(parts) if parts else np.empty((0, side**2), np.float32)


def same_picture(small: NDArray[np.float32], near: float = NEAR) -> Iterator[tuple[int, int, float]]:
    """Yield pairs i < j of nearly equal thumbnails with their correlation."""
    for start in range(0, len(small), CHUNK):
        found = small[start : start + CHUNK] @ small[start:].T
        for i, j in zip(*np.nonzero(found >= near), strict=True):
            if i < j:
                yield start + int(i), start + int(j), float(found[i, j])


def groups(small: NDArray[np.float32], near: float = NEAR) -> list[list[int]]:
    """Return the rows that are one picture, in groups of two and more, each in order; chained by near pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.array([pair[:2] for pair in same_picture(small, near)], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(small), len(small)))
    _, part = connected_components(graph, directed=False)
    found: dict[int, list[int]] = {}
    for row in np.unique(pairs):
        found.setdefault(int(part[row]), []).append(int(row))
    return list(found.values())


def without_copies(
    order: Iterable[int], small: NDArray[np.float32], labeled: NDArray[np.int64], n: int, near: float = NEAR
) -> tuple[list[int], int]:
    """Return the first n rows of an order that are near no labeled one and none before them, and how many were not."""
    taken: NDArray[Any] = small[labeled]
    chosen: list[int] = []
    left_out = 0
    for row in order:
        if len(chosen) == n:
            break
        if len(taken) and float((taken @ small[row]).max()) >= near:
            left_out += 1
            continue
        chosen.append(row)
        taken = np.concatenate([taken, small[row][None]])
    return chosen, left_out
