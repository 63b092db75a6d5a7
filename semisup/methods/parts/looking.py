"""A look at what a method makes of images, which changes nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "looking"]


@contextmanager
def evaluating(method: nn.Module) -> Iterator[None]:
    """Within this context the method is in eval mode and has no gradient.

    Afterwards, also after an error, every submodule is in the mode of its own again.
    """
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def looking(method: nn.Module, images: Tensor) -> Iterator[None]:
    """Do the same as `evaluating`, and draw from one seed, always the same; the global generators stay where they were.

    Args:
        method: what predicts.
        images: on the device whose generator is meant besides the CPU's.
    """
    with evaluating(method), torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        yield
