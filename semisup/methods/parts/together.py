"""Several batches in one forward, or each in a forward of its own that BatchNorm's running statistics forget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from semisup.models import frozen_statistics

__all__ = ["apart", "together"]


def together(network: Callable[[Tensor], Tensor], *parts: Tensor) -> Sequence[Tensor]:
    """Send batches through `network` in one forward, hence with one set of batch statistics, and part what comes out.

    Args:
        network: (N, ...) to (N, ...).
        parts: batches of images of one shape; one after another along the first dimension.

    Returns:
        What `network` makes of each part.
    """
    outputs: Sequence[Tensor] = network(torch.cat(parts)).split([len(part) for part in parts])
    return outputs


def apart(model: nn.Module, network: Callable[[Tensor], Tensor], *parts: Tensor) -> list[Tensor]:
    """Send each batch through `network` in a forward of its own, normalized by its own batch statistics.

    The running statistics stay as they are: for images unlike those that the network will be asked about.

    Args:
        model: whose BatchNorm layers are meant.
        network: `model` or a part of it, such as `model.features`.
        parts: batches of images.
    """
    with frozen_statistics(model):
        return [network(part) for part in parts]
