"""Optimizers by name, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from semisup.errors import nearest, raise_all
from semisup.methods import Method
from semisup.models import Classifier, Encoder
from semisup.models.blocks import blocks_of
from semisup.settings import OptimizerConfig, ScheduleConfig

__all__ = [
    "LARS",
    "build_optimizers",
    "check_group_lr",
    "learning_rate",
    "lr_factors",
    "set_learning_rates",
    "warmup_steps",
]


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled, per weight tensor, by trust * |w| / |g + weight_decay w|.

    You et al. 2017, arXiv:1708.03888; momentum 0.9 and trust 0.001 as in google-research/simclr lars_optimizer.py.
    Momentum is the classic kind: the learning rate enters the velocity. Groups with `adapt=False` (biases and norms)
    are plain SGD with momentum.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: added to the gradient before the norms are taken.
        trust: the trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, object]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Apply one update; returns what `closure`, if any, computes first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in _in_parts([p for p in group["params"] if p.grad is not None]):
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        given = [p.grad for p in weights]
        grads = list(torch._foreach_add(given, weights, alpha=group["weight_decay"]))  # type: ignore[arg-type]  # our own
        if group["adapt"]:
            torch._foreach_mul_(grads, _trust_ratios(weights, grads, group["trust"]))
        for p in weights:
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        velocities = [self.state[p]["velocity"] for p in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, grads, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)


IN_CACHE = 2**18
"""Numbers, 1 MiB of floats, that stay in a core's cache from one operation to the next."""


def _in_parts(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield all tensors at once, or on the CPU a few at a time: what is still in the cache is not read again.

    Steps of ResNet-50 take 1.02 to 1.05 times as long as timm's then, instead of 1.18 (benchmarks/lars.py).
    """
    part, numbers = list[Tensor](), 0
    for p in weights:
        if part and p.device.type == "cpu" and numbers + p.numel() > IN_CACHE:
            yield part
            part, numbers = [], 0
        part.append(p)
        numbers += p.numel()
    if part:
        yield part


def _trust_ratios(weights: list[Tensor], grads: list[Tensor], trust: float) -> list[Tensor]:
    """Return trust * |w| / |g| of each tensor, 0-d and on its device; 1 where either norm is 0, as in the reference."""
    w_norms, g_norms = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(grads))
    ratios = torch.where((w_norms > 0) & (g_norms > 0), trust * w_norms / g_norms, 1.0)
    return list(ratios.unbind())


def check_group_lr(method: Method, config: OptimizerConfig) -> None:
    """Refuse a `group_lr` for a group that the method does not have.

    Raises:
        SemisupError: names it and the nearest group.
    """
    groups = method.groups()
    unknown = [name for name in config.group_lr if name not in groups]
    problems = [f"the method has no parameter group '{name}'{nearest(name, groups)}" for name in unknown]
    raise_all(problems, "optimizer.group_lr")


def build_optimizers(method: Method, config: OptimizerConfig) -> dict[str, torch.optim.Optimizer]:
    """One optimizer for each of the method's groups; biases and norms (parameters of one dimension) get no decay.

    Raises:
        SemisupError: `group_lr` names a group that the method does not have.
    """
    check_group_lr(method, config)
    factors = {} if config.lr_decay == 1 else lr_factors(method, config.lr_decay)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, parameters in method.groups().items():
        lr = config.group_lr.get(name, config.lr)
        trained = [p for p in parameters if p.requires_grad]
        groups = [group for factor in _by_factor(trained, factors) for group in _decayed(*factor, lr, config)]
        if config.name == "sgd":
            nesterov = config.nesterov and config.momentum > 0
            optimizers[name] = torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=nesterov, foreach=True)
        elif config.name == "adamw":
            beta1, beta2 = config.betas
            optimizers[name] = torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), foreach=True)
        else:
            optimizers[name] = LARS(groups, lr=lr, momentum=config.momentum, trust=config.trust)
    return optimizers


def _decayed(factor: float, parameters: list[nn.Parameter], lr: float, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split parameters of one learning rate into those that weight decay is for and the others."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    for group, adapt in zip(groups, (True, False), strict=True):
        group["peak_lr"] = lr * factor
        if config.name == "lars":
            group["adapt"] = adapt
    return groups


def lr_factors(method: Method, decay: float) -> dict[nn.Parameter, float]:
    """Return the factor on the learning rate of each parameter of a method's backbones.

    A backbone of L blocks has depths 0 to L (`semisup.models.blocks`), and depth d the factor decay^(L + 1 - d), as
    timm's `param_groups_layer_decay` and BEiT have it; what is in no backbone has 1.
    """
    factors: dict[nn.Parameter, float] = {}
    for network in method.modules():
        if isinstance(network, Classifier | Encoder):
            blocks = blocks_of(network.backbone)
            last = len(blocks.modules) + 1
            for name, parameter in network.backbone.named_parameters():
                factors[parameter] = decay ** (last - blocks.depth[name])
    return factors


def _by_factor(
    parameters: list[nn.Parameter], factors: dict[nn.Parameter, float]
) -> list[tuple[float, list[nn.Parameter]]]:
    """Sort parameters by their factor, the largest first: the logged learning rate is the first group's."""
    found: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in parameters:
        found.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    return sorted(found.items(), key=lambda item: -item[0])


def warmup_steps(schedule: ScheduleConfig, total: int) -> int:
    """Length of the warm-up in steps: `warmup` below 1 is a part of the stage."""
    return round(schedule.warmup * total) if schedule.warmup < 1 else int(schedule.warmup)


def learning_rate(schedule: ScheduleConfig, step: int, total: int) -> float:
    """Factor on the peak learning rate at `step` of `total`.

    A linear warm-up from 1/warmup to 1, then `cosine`: (1 + cos(pi t)) / 2 (SimCLR); `cosine_7_16`: cos(7 pi t / 16)
    (FixMatch, sec. 2.3: 0.773 half-way, 0.195 at the end); or `constant`. t runs over what follows the warm-up.
    """
    warmup = warmup_steps(schedule, total)
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(total - warmup, 1)
    if schedule.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * t))
    if schedule.name == "cosine_7_16":
        return math.cos(7 * math.pi * t / 16)
    return 1.0


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
