"""A network that gives each pixel from those above it and to its left, and from a code."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GatedPixelCNN"]


class GatedPixelCNN(nn.Module):
    """Conditional gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328, sec. 2).

    Two stacks of convolutions, gated by tanh times sigmoid with a code added inside both: the vertical one reads whole
    rows above a pixel, the horizontal one its own row to the left, and the vertical stack with it. Nothing is masked:
    the image enters the one moved down by a row and the other moved right by a column, and kernels reach up and left
    only, which is the same and computes nothing for zeros. No blind spot.

    Input images `(N, in_channels, H, W)` and codes `(N, code)`, output `(N, out_channels, H, W)`, which at every
    place depends on earlier pixels alone, in the order of reading. The channels of a pixel do not see each other.

    Args:
        in_channels: of the images.
        code: width of the codes.
        width: channels of each stack.
        layers: gated layers; a pixel sees as many rows above it and one more.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, code: int, width: int, layers: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width if i else in_channels, code, width) for i in range(layers))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, out_channels, 1))

    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        """Map images and codes to one output per place."""
        above, left = F.pad(images, (0, 0, 1, -1)), F.pad(images, (1, -1))
        for layer in self.layers:
            above, left = layer(above, left, codes)
        out: Tensor = self.out(left)
        return out


class _Layer(nn.Module):
    """Both stacks' gated convolutions (figure 2 of the paper); kernels of 3 pixels, cut to what may be seen."""

    def __init__(self, c_in: int, code: int, width: int) -> None:
        super().__init__()
        self.above = nn.Conv2d(c_in, 2 * width, (2, 3))
        self.left = nn.Conv2d(c_in, 2 * width, (1, 2))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.code = nn.Linear(code, 4 * width, bias=False)
        self.out = nn.Conv2d(width, width, 1)
        self.residual = c_in == width

    def forward(self, above: Tensor, left: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        to_above, to_left = self.code(codes)[:, :, None, None].chunk(2, dim=1)
        rows = self.above(F.pad(above, (1, 1, 1, 0))) + to_above
        row = self.left(F.pad(left, (1, 0))) + self.link(rows) + to_left
        out = self.out(_gate(row))
        return _gate(rows), left + out if self.residual else out


def _gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=1)
    return value.tanh() * gate.sigmoid()
