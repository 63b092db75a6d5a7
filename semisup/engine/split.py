"""One step on several ranks: every rank runs the method on the whole batch, and the networks share its images.

A method, its losses, memories and random draws are the same on every rank, and so need to know nothing of the others.
What costs time are the networks: each rank sends its own rows through them, and the outputs are gathered. Nothing of a
method can be wrong on several ranks: where something is not split, it is done everywhere.

Gradients. All ranks have the same loss, so that the gradient of a gathered output is known on each: it takes its rows
of it, times the number of ranks R. A weight inside a network so gets R times a part of its gradient, one outside of
them, or within a batch too small to be split, gets the whole, and the mean over the ranks is right for both.

Within a network BatchNorm's statistics are those of all rows, with their gradients, and dropout's draws are made for
all rows, of which each rank keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from semisup.engine import ranks
from semisup.models import Classifier, Encoder
from semisup.models.decoder import MapDecoder
from semisup.models.gated_pixel_cnn import GatedPixelCNN

__all__ = ["share_statistics", "split_networks"]

ENTRIES = ("forward", "maps", "encode")
"""Methods of a network that take rows and give rows."""
PER_IMAGE = ("DropPath", "StochasticDepth")
"""Classes of timm and torchvision that leave out a block for whole images: one draw for each."""


class _Forward:
    """Where this process stands."""

    rows: int | None = None
    """Within a split network: the rows of all ranks together."""


def split_networks(method: nn.Module, *, sync_batchnorm: bool = True) -> None:
    """Let the networks of a method share their images between the ranks, whenever these are at one step.

    Names in the state dict stay.

    Copies of a network, such as averages of its weights, are split too. Projection heads and the like are not: they
    cost little, and see the gathered features.

    Args:
        method: changed in place.
        sync_batchnorm: BatchNorm within the networks takes the statistics of all rows; else each rank's own, and the
            running statistics are shared by `share_statistics`.
    """
    for module in list(method.modules()):
        if isinstance(module, Classifier | Encoder):
            _split(module.backbone, sync_batchnorm)
        elif isinstance(module, MapDecoder | GatedPixelCNN):
            _split(module, sync_batchnorm)


def _split(network: nn.Module, sync_batchnorm: bool) -> None:
    if hasattr(type(network), "split_over_ranks"):
        return  # of two encoders around one backbone
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and sync_batchnorm:
            _become(layer, {"forward": partial(_normalize, type(layer).forward)})
        elif isinstance(layer, _DropoutNd) or type(layer).__name__ in PER_IMAGE:
            _become(layer, {"forward": partial(_drop, type(layer).forward)})
    kind = type(network)
    entries = {name: partial(_on_own_rows, getattr(kind, name)) for name in ENTRIES if hasattr(kind, name)}
    _become(network, {**entries, "split_over_ranks": None})


def share_statistics(method: nn.Module) -> None:
    """Give BatchNorm within split networks the running statistics of rank 0, as DistributedDataParallel does.

    Args:
        method: of which each rank has normalized its own rows by themselves alone; changed in place.
    """
    networks = [module for module in method.modules() if hasattr(type(module), "split_over_ranks")]
    norms = [layer for network in networks for layer in network.modules() if isinstance(layer, _BatchNorm)]
    running = [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]
    ranks.from_first(running)


def _become(module: nn.Module, members: dict[str, Any]) -> None:
    """Give a module other methods, by a class of its own: a deep copy of it has them too."""
    kind = type(module)

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *args, **named: function(self, *args, **named)

    found = {name: bound(member) if callable(member) else member for name, member in members.items()}
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **found})


# Rows -----------------------------------------------------------------------------------------------------------------


def _on_own_rows(function: Callable[..., Any], network: nn.Module, *args: Any, **named: Any) -> Any:
    """Call `function` with this rank's rows of its tensors, and return the rows of all ranks."""
    rows = next(len(arg) for arg in (*args, *named.values()) if isinstance(arg, Tensor))
    if not ranks.at_one_step() or _Forward.rows is not None or rows < ranks.size():
        return function(network, *args, **named)

    def own(arg: Any) -> Any:
        return _Own.apply(arg) if isinstance(arg, Tensor) else arg

    _Forward.rows = rows
    try:
        found = function(network, *map(own, args), **{name: own(arg) for name, arg in named.items()})
    finally:
        _Forward.rows = None
    if isinstance(found, Tensor):
        return _Whole.apply(found, rows)
    return [_Whole.apply(each, rows) for each in found]


class _Own(torch.autograd.Function):
    """This rank's rows; backward, the gradient of all rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return rows[ranks.own_rows(len(rows))]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return ranks.whole(slope, ctx.count) / ranks.size()


class _Whole(torch.autograd.Function):
    """The rows of all ranks; backward, R times this rank's rows of the gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, count: int) -> Tensor:
        ctx.count = count
        return ranks.whole(part, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope[ranks.own_rows(ctx.count)] * ranks.size(), None


# Layers in which the images of a batch meet ---------------------------------------------------------------------------


def _drop(original: Callable[[nn.Module, Tensor], Tensor], layer: nn.Module, x: Tensor) -> Tensor:
    """Dropout, drawn for the rows of all ranks."""
    if _Forward.rows is None or not layer.training:
        return original(layer, x)
    wide = x.shape[1:] if type(layer).__name__ == "Dropout" else [*x.shape[1:2], *(1 for _ in x.shape[2:])]
    own, times = ranks.own_rows(_Forward.rows), _times(x)
    ones = x.new_ones(_Forward.rows * times, *wide)
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        ones = ones.contiguous(memory_format=torch.channels_last)  # draws come in the order of memory
    return x * original(layer, ones)[own.start * times : own.stop * times]


def _times(x: Tensor) -> int:
    """Return how many rows of `x` an image has: transformers of windows cut it into several, one after another."""
    own = ranks.own_rows(_rows())
    return len(x) // int(own.stop - own.start)


def _normalize(original: Callable[[_BatchNorm, Tensor], Tensor], layer: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm by the statistics of the rows of all ranks; running statistics as `_BatchNorm.forward` moves them."""
    if _Forward.rows is None or not (layer.training or layer.running_mean is None):
        return original(layer, x)
    mean, var, count = _statistics(x)
    if layer.training and layer.track_running_stats and layer.running_mean is not None:
        assert layer.running_var is not None and layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        momentum = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
        layer.running_var.lerp_((var * (count / (count - 1))).to(layer.running_var.dtype), momentum)
    normalized: Tensor = _Normalized.apply(x, layer.weight, layer.bias, mean, var, count, layer.eps)
    if hasattr(layer, "act"):  # timm's BatchNormAct2d, of EfficientNets and many others, goes on to its activation
        normalized = cast(nn.Module, layer.act)(cast(nn.Module, layer.drop)(normalized))
    return normalized


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance (C,) over the rows of all ranks, and how many numbers each is of."""
    exact = x if x.dtype == torch.float64 else x.float()
    if x.device.type == "cpu":  # eleven times as fast as var_mean in channels_last memory, and what one process takes
        mean, var = torch.batch_norm_update_stats(exact, None, None, 0.0)
    else:
        var, mean = torch.var_mean(exact, [0, *range(2, x.ndim)], correction=0)
    count = _rows() * x[0, 0].numel() * _times(x)
    means, variances = ranks.whole(torch.stack([mean, var])[None], ranks.size()).unbind(1)
    shares = ranks.shares(_rows(), like=mean)[:, None]
    center = (shares * means).sum(0)
    return center, (shares * (variances + (means - center).square())).sum(0), count


def _rows() -> int:
    assert _Forward.rows is not None
    return _Forward.rows


class _Normalized(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, whose gradient goes through the statistics of all ranks too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, n: int, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.n, ctx.eps = n, eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        scale = (var + ctx.eps).rsqrt()
        _, slope_weight, slope_bias = torch.ops.aten.native_batch_norm_backward(
            slope, x, torch.ones_like(mean) if weight is None else weight, mean, var, mean, scale, False, ctx.eps,
            [False, True, True],
        )  # fmt: skip
        # Of all ranks: the mean slope, and that along the normalized x; what a shift or a stretch of x would undo.
        shift, stretch = ranks.total(torch.stack([slope_bias, slope_weight])) / ctx.n
        factor = scale if weight is None else scale * weight.to(scale.dtype)
        level, tilt = factor * (stretch * scale * mean - shift), -factor * stretch * scale
        level, tilt, factor = (each.view(1, -1, *(1,) * (x.ndim - 2)).to(x.dtype) for each in (level, tilt, factor))
        slope_x = torch.addcmul(level, x, tilt).addcmul_(slope, factor)
        weightless = weight is None
        return slope_x, None if weightless else slope_weight, None if weightless else slope_bias, None, None, None, None
