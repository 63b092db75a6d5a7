"""Forward passes that BatchNorm should forget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["frozen_statistics"]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within this context, BatchNorm in train mode normalizes by the batch and leaves its running statistics alone.

    For images that the network will never be asked about, such as adversarial ones. In eval mode nothing changes.

    Args:
        module: the network; all BatchNorm layers inside it are meant.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
