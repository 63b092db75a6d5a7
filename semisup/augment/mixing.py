"""MixUp: images and their targets blended in pairs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_mixing", "mix"]


def draw_mixing(count: int, alpha: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw, for each of ``count`` images, whom it is mixed with and how much of itself it keeps.

    Drawn on the CPU from torch's global generator, so that every device sees the same numbers, and moved without
    waiting.

    Args:
        count: N.
        alpha: of Beta(alpha, alpha), >= 0; the larger, the closer to halves. 0 keeps every image as it is.
        device: where the images are.

    Returns:
        The partners, a permutation (N,) int64, and the shares (N,) in [0.5, 1]: max(lambda, 1 - lambda), so that an
        image always remains the larger part of its mixture (MixMatch, arXiv:1905.02249, eq. 9). E[share] is 0.778 for
        alpha 0.75 and 0.818 for 0.5.
    """
    partners = torch.randperm(count, device="cpu")
    if alpha > 0:
        # lambda = g / (g + g') with Gamma(alpha) draws g = Gamma(alpha + 1) u^(1/alpha), in logarithms: g itself, and
        # with it torch's Beta, underflows to lambda = 0.5 for an alpha below 0.001.
        one_more = torch.full((2, count), alpha + 1.0, device="cpu")
        g = torch.distributions.Gamma(one_more, torch.ones_like(one_more), validate_args=False).sample()
        logs = g.log() + (1 - torch.rand(2, count, device="cpu")).log() / alpha
        shares = (logs[0] - logs[1]).abs().sigmoid()
    else:
        shares = torch.ones(count, device="cpu")
    return partners.to(device, non_blocking=True), shares.to(device, non_blocking=True)


def mix(x: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Return ``shares * x + (1 - shares) * x[partners]``, row by row (MixUp, Zhang et al. 2018, arXiv:1710.09412).

    Mix images and targets with the same partners and shares.

    Args:
        x: (N, ...), images or target probabilities.
        partners: (N,) int64 rows of ``x``.
        shares: (N,) in [0, 1].
    """
    return torch.lerp(x[partners], x, shares.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))
