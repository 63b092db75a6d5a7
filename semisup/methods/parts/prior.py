"""Distribution alignment against the last few batches, with classes that are equally frequent."""

from __future__ import annotations

import torch
from torch import Tensor

from semisup.losses import align_distribution

__all__ = ["align_to_uniform"]


def align_to_uniform(probs: Tensor, recent: Tensor) -> Tensor:
    """Return ``probs`` scaled by uniform / mean of the last batches, this one included; their mean is remembered.

    CoMatch and SimMatch; ReMixMatch aligns before it remembers, and begins with a uniform memory.

    Args:
        probs: (N, C), without gradient, rows sum to 1.
        recent: (M, C) buffer, mean answer of each of the last M batches, the oldest first; rows of 0 do not count, so
            that it begins with zeros. Changed in place.
    """
    recent.copy_(torch.cat([recent[1:], probs.mean(0, keepdim=True)]))
    expected = recent.sum(0) / recent.sum()
    return align_distribution(probs, torch.full_like(expected, 1 / len(expected)), expected)
