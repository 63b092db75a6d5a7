"""From the red, green and blue of a screen to lightness and two opponent colors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rgb_to_lab"]

# Rows X, Y, Z of light with the primaries of sRGB and the white D65 (IEC 61966-2-1).
XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
KNEE = 6 / 29  # below its cube the root is continued by its tangent


def rgb_to_lab(images: Tensor) -> Tensor:
    """Return CIE L*a*b* of sRGB images, white D65 (CIE 15:2004, 8.2.1).

    Sums and no matrix product, which autocast would round.

    Args:
        images: (N, 3, H, W) in [0, 1].

    Returns:
        (N, 3, H, W): L in [0, 100], a (green to red) in about [-86, 98], b (blue to yellow) in about [-108, 94]. Grays
        have a = b = 0, to rounding.
    """
    light = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    # Over the white's X, Y and Z, the sums of the rows.
    x, y, z = (_root(sum(w / sum(row) * light[:, i] for i, w in enumerate(row))) for row in XYZ)  # type: ignore[arg-type]
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _root(t: Tensor) -> Tensor:
    """Cube root, continued by a straight line near 0."""
    return torch.where(t > KNEE**3, t.clamp(min=KNEE**3) ** (1 / 3), t / (3 * KNEE**2) + 4 / 29)
