"""A look at what a method makes of images, which changes nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["looking"]


@contextmanager
def looking(method: nn.Module, images: Tensor) -> Iterator[None]:
    """Within this context the method is in eval mode, has no gradient, and draws from one seed, always the same.

    Afterwards, also after an error, every submodule is in the mode of its own again, and the global generators are
    where they were.

    Args:
        method: what answers.
        images: on the device whose generator is meant beside the CPU's.
    """
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(0)
            yield
    finally:
        for module, training in modes:
            module.training = training
