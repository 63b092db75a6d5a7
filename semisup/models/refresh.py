"""BatchNorm statistics of the images that a network will be asked about."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["initial_share", "refresh_statistics"]


def initial_share(network: nn.Module, steps: int) -> float:
    """Return the part of BatchNorm's initial statistics, mean 0 and variance 1, that is left after so many forwards.

    (1 - momentum)^steps of the layer that forgets most slowly; 0 without BatchNorm.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms if m.momentum is not None]
    return (1 - min(momenta)) ** steps if momenta else 0.0


@torch.no_grad()
def refresh_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace BatchNorm's running statistics by their plain means over batches (`torch.optim.swa_utils.update_bn`).

    Weights stay. Everything but BatchNorm is in eval mode meanwhile; so is the whole network afterwards. Layers that
    the forward does not reach, such as those of a projection head, keep their statistics. Without BatchNorm no batch
    is read.

    Args:
        network: changed in place.
        batches: images (N, C, H, W), N >= 2, of about the same number; at least one.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    before = [({name: b.clone() for name, b in norm.named_buffers(recurse=False)}, norm.momentum) for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for images in batches:
        network(images)
    network.eval()
    for norm, (buffers, momentum) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if norm.num_batches_tracked == 0:
            norm.load_state_dict(buffers, strict=False)
