"""A three-layer network for small images: the default for 8x8 digits, and quick on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import raise_all
from semisup.options import Count, check_options

__all__ = ["SmallCNN", "conv_bn_relu"]

# A map wider than this is shrunk by 4 instead of 2, so that 224 px images stay affordable: 0.12 GMAC at width 32.
WIDE_MAP = 48


class SmallCNN(nn.Module):
    """Three conv-BN-ReLU layers of `width`, `2 width` and `4 width` channels, then the mean over the map.

    Weights do not depend on the image size: any size from 4 px works, and an 8 px image is seen at 8, 4 and 2 px.
    Input `(N, in_channels, H, W)`, output `(N, 4 * width)`.

    Args:
        width: channels of the first layer.
        in_channels: 1 for gray images, 3 for color.

    Raises:
        SemisupError: `width` is out of its range.
    """

    name = "cnn"

    def __init__(self, width: Count = 32, *, in_channels: int = 3) -> None:
        super().__init__()
        raise_all(check_options(SmallCNN, {"width": width}), "model cnn")
        self.layer1 = conv_bn_relu(in_channels, width)
        self.layer2 = conv_bn_relu(width, 2 * width)
        self.layer3 = conv_bn_relu(2 * width, 4 * width)
        self.num_features = 4 * width
        self.in_channels = in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to features `(N, 4 * width)`."""
        return self.maps(images)[-1].mean(dim=(2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the three layers' maps `(N, channels, h, w)`, the first before it is shrunk for the second."""
        first = self.layer1(images)
        second = self.layer2(_shrink(first))
        return [first, second, self.layer3(_shrink(second))]


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a 3x3 convolution that keeps the size, BN and ReLU, with He's initial weights."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _shrink(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 4 if x.shape[-1] > WIDE_MAP else 2)
