"""`activation_checkpointing`: a block's activations are computed once more in backward instead of being kept."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from semisup.models.blocks import blocks_of

__all__ = ["recompute_blocks", "recomputed"]


def recompute_blocks(backbone: nn.Module) -> int:
    """Keep, of each block of a backbone, nothing but its input for backward; changed in place, names stay.

    Chen et al. 2016, arXiv:1604.06174. Gradients are those without it. Random numbers of the second forward are those
    of the first, and BatchNorm's running statistics count the batch once.

    Returns:
        The number of blocks.
    """
    modules = blocks_of(backbone).modules
    for block in modules:
        contexts = functools.partial(_contexts, block)
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    return len(modules)


def recomputed(module: nn.Module) -> list[nn.Module]:
    """Return the blocks inside of which backward is left nothing but the input."""
    return [inner for inner in module.modules() if "forward" in vars(inner)]


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what stands around the first forward, and around the second."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Have BatchNorm normalize by the batch and leave its running statistics as they are, whatever they are saved for.

    `frozen_statistics` would hand other tensors to the kernel, which checkpoints compare with the first forward's.
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
