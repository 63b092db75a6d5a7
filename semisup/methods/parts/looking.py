"""A look at what a method makes of images, which changes nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from semisup.evaluate.forward import evaluating

__all__ = ["looking"]


@contextmanager
def looking(method: nn.Module, images: Tensor) -> Iterator[None]:
    """Do as `evaluating`, and draw from one seed, always the same; the global generators stay where they were.

    Args:
        method: what predicts.
        images: on the device whose generator is meant besides the CPU's.
    """
    with evaluating(method), torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        yield
