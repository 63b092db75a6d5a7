"""What several methods do with the embeddings that they remember."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["enqueue", "last_of", "oldest"]


def enqueue(queue: Tensor, written: Tensor, rows: Tensor) -> None:
    """Overwrite the oldest rows of a first-in-first-out memory, without a host synchronization.

    Args:
        queue: (K, D) the memory, changed in place.
        written: 0-d int64, how many rows were ever put in; raised in place.
        rows: (N, D) new ones, N <= K: more would write some places twice, in an order that nobody guarantees.
    """
    queue.index_copy_(0, oldest(len(queue), written, len(rows)), rows)
    written += len(rows)


def oldest(length: int, written: Tensor, count: int) -> Tensor:
    """(count,) places of a first-in-first-out memory of `length` rows that are to be overwritten next."""
    return (written + torch.arange(count, device=written.device)) % length


def last_of(places: Tensor) -> Tensor:
    """(N,) where each of the `places` (N,) stands last among them, without a host synchronization.

    Where two epochs meet in a batch, an image may stand in it twice, and in which order a GPU writes is left open. Rows
    that are picked by this are the same wherever their place is: the last one stays, on every rank.
    """
    found, order = places.sort(stable=True)
    return order[torch.searchsorted(found, places, right=True) - 1]
