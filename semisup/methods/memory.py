"""What several methods do with the embeddings that they remember."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["enqueue"]


def enqueue(queue: Tensor, written: Tensor, rows: Tensor) -> None:
    """Overwrite the oldest rows of a first-in-first-out memory, without a host synchronisation.

    Args:
        queue: (K, D) the memory, changed in place.
        written: 0-d int64, how many rows were ever put in; raised in place.
        rows: (N, D) new ones, N <= K: more would write some places twice, in an order that nobody guarantees.
    """
    places = (written + torch.arange(len(rows), device=rows.device)) % len(queue)
    queue.index_copy_(0, places, rows)
    written += len(rows)
