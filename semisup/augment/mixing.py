"""MixUp and CutMix: images blended in pairs, or a box of one set into another, and their targets alike."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cut", "draw_cutting", "draw_mixing", "mix"]


def draw_mixing(count: int, alpha: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw, for each of `count` images, whom it is mixed with and how much of itself it keeps.

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
    shares = _draw_log_odds(count, alpha).abs().sigmoid() if alpha > 0 else torch.ones(count, device="cpu")
    return partners.to(device, non_blocking=True), shares.to(device, non_blocking=True)


def draw_cutting(
    count: int, alpha: float, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw, for each of `count` images, whose box is set into it and where.

    CutMix, Yun et al. 2019, arXiv:1905.04899.

    Drawn on the CPU from torch's global generator, so that every device sees the same numbers, and moved without
    waiting. Each image has a box of its own; the authors draw one for the batch.

    Args:
        count: N.
        alpha: of Beta(alpha, alpha), >= 0. Paper: 1. 0 leaves every image as it is.
        size: (H, W).
        device: where the images are.

    Returns:
        The partners, a permutation (N,) int64; boxes (N, 4) int64, pixels (top, left, bottom, right), the last two
        outside: sides sqrt(1 - lambda) of the image's, rounded down to an even number, about a pixel drawn evenly, cut
        to the image; and the shares (N,) in [0, 1] of the image that are left outside its box, by pixels, by which to
        `mix` the targets.
    """
    partners = torch.randperm(count, device="cpu")
    lengths = torch.tensor(size, device="cpu")
    kept = _draw_log_odds(count, alpha).sigmoid() if alpha > 0 else torch.ones(count, device="cpu")
    sides = ((1 - kept).sqrt()[:, None] * lengths).floor().long()
    centers = (torch.rand(count, 2, device="cpu") * lengths).floor().long()
    low = (centers - sides // 2).clamp(min=0)
    high = torch.minimum(centers + sides // 2, lengths)
    shares = 1 - (high - low).prod(1) / (size[0] * size[1])
    boxes = torch.cat([low, high], dim=1)
    return (
        partners.to(device, non_blocking=True),
        boxes.to(device, non_blocking=True),
        shares.to(device, non_blocking=True),
    )


def _draw_log_odds(count: int, alpha: float) -> Tensor:
    """(N,) of log(lambda / (1 - lambda)) with lambda of Beta(alpha, alpha), alpha > 0."""
    # lambda = g / (g + g') with Gamma(alpha) draws g = Gamma(alpha + 1) u^(1/alpha), in logarithms: g itself, and with
    # it torch's Beta, underflows to lambda = 0.5 for an alpha below 0.001.
    one_more = torch.full((2, count), alpha + 1.0, device="cpu")
    g = torch.distributions.Gamma(one_more, torch.ones_like(one_more), validate_args=False).sample()
    logs = g.log() + (1 - torch.rand(2, count, device="cpu")).log() / alpha
    return logs[0] - logs[1]


def mix(x: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Return `shares * x + (1 - shares) * x[partners]`, row by row (MixUp, Zhang et al. 2018, arXiv:1710.09412).

    Mix images and targets with the same partners and shares.

    Args:
        x: (N, ...), images or target probabilities.
        partners: (N,) int64 rows of `x`.
        shares: (N,) in [0, 1].
    """
    return torch.lerp(x[partners], x, shares.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))


def cut(images: Tensor, partners: Tensor, boxes: Tensor) -> Tensor:
    """Set into each image the same box of its partner. Mix the targets by `mix` and the shares of the draw.

    Args:
        images: (N, C, H, W).
        partners: (N,) int64 rows of `images`.
        boxes: (N, 4) int64 (top, left, bottom, right), the last two outside.
    """
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    return torch.where(inside[:, None], images[partners], images)
