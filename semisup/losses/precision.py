"""Losses are computed in float32 whatever the network ran in: exp(1/0.07) = 1.6e6 already overflows float16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["full_precision", "without_autocast"]


def full_precision(x: Tensor) -> Tensor:
    """Return `x` as float32; float64 stays, so that a gradient can be compared with finite differences."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context that switches autocast off on the device of `x`.

    Only matrix products need it: autocast would round their float32 inputs again. Devices without autocast, such as
    `meta`, refuse to enter it even when disabled, hence the empty context.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
