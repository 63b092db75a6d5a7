"""Wide residual network, as the semi-supervised literature uses it on 32 px images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import raise_all
from semisup.options import Count, Momentum, Range, check_options

__all__ = ["WideResNet"]

LEAK = 0.1  # slope of the leaky ReLU for negative inputs
BN_EPS = 1e-3  # TensorFlow's default, hence that of the published results


class WideResNet(nn.Module):
    """WRN-depth-width: 3x3 convolution to 16 channels, three groups of pre-activation blocks, BN, mean over the map.

    Follows the network of google-research/mixmatch and fixmatch: groups of `(16, 32, 64) * width` channels at
    full, half and quarter resolution, leaky ReLU 0.1, no dropout, convolutions drawn from N(0, 2 / (k^2 c_out)); the
    very first block takes its shortcut after the activation. Zagoruyko and Komodakis 2016, arXiv:1605.07146.
    Input `(N, in_channels, H, W)`, output `(N, 64 * width)`.

    Args:
        depth: number of convolutions on the longest path, 6n+4: 28 is the literature's choice.
        width: channel multiplier: 2 for CIFAR-10 and SVHN, 8 for CIFAR-100.
        bn_momentum: weight of the newest batch in the running statistics, in (0, 1]. The published 0.001
            (TensorFlow's 0.999) needs several thousand steps to settle: raise it to 0.1 or so for short runs.
        in_channels: 1 for gray images, 3 for color.

    Raises:
        SemisupError: a value out of its range; all of them are listed.
    """

    name = "wrn"

    def __init__(
        self,
        depth: Annotated[int, Range(10, 1000)] = 28,
        width: Count = 2,
        bn_momentum: Momentum = 0.001,
        *,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        given = {"depth": depth, "width": width, "bn_momentum": bn_momentum}
        raise_all(check_options(WideResNet, given), "model wrn")
        blocks = (depth - 4) // 6
        channels = [16 * width, 32 * width, 64 * width]
        self.stem = _conv3x3(in_channels, 16)
        self.group1 = _group(blocks, 16, channels[0], bn_momentum, stride=1)
        self.group2 = _group(blocks, channels[0], channels[1], bn_momentum, stride=2)
        self.group3 = _group(blocks, channels[1], channels[2], bn_momentum, stride=2)
        self.bn = nn.BatchNorm2d(channels[2], eps=BN_EPS, momentum=bn_momentum)
        self.num_features = channels[2]
        self.in_channels = in_channels

    @staticmethod
    def conflicts(depth: int, **_: object) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between the options; see `semisup.options.check_options`."""
        if depth % 6 != 4:
            below = depth - (depth - 4) % 6
            yield "depth", f"must be 6n+4, not {depth}; the nearest are {below} and {below + 6}"

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to features `(N, 64 * width)`."""
        return self.maps(images)[-1].mean(dim=(2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the three groups' maps `(N, channels, h, w)`, the last one after BN and leaky ReLU."""
        first = self.group1(self.stem(images))
        second = self.group2(first)
        return [first, second, F.leaky_relu(self.bn(self.group3(second)), LEAK, inplace=True)]


class _Block(nn.Module):
    """BN, leaky ReLU, 3x3, BN, leaky ReLU, 3x3, plus the shortcut (1x1 where the shape changes)."""

    def __init__(self, c_in: int, c_out: int, bn_momentum: float, *, stride: int, activate_shortcut: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in, eps=BN_EPS, momentum=bn_momentum)
        self.conv1 = _conv3x3(c_in, c_out, stride)
        self.bn2 = nn.BatchNorm2d(c_out, eps=BN_EPS, momentum=bn_momentum)
        self.conv2 = _conv3x3(c_out, c_out)
        self.shortcut = nn.Identity() if c_in == c_out and stride == 1 else _conv(c_in, c_out, 1, stride)
        self.activate_shortcut = activate_shortcut

    def forward(self, x: Tensor) -> Tensor:
        active = F.leaky_relu(self.bn1(x), LEAK, inplace=True)
        y = self.conv1(active)
        y = self.conv2(F.leaky_relu(self.bn2(y), LEAK, inplace=True))
        residual: Tensor = self.shortcut(active if self.activate_shortcut else x) + y
        return residual


def _group(blocks: int, c_in: int, c_out: int, bn_momentum: float, *, stride: int) -> nn.Sequential:
    # Only the network's first block, the one with stride 1, activates before it branches.
    first = _Block(c_in, c_out, bn_momentum, stride=stride, activate_shortcut=stride == 1)
    rest = [_Block(c_out, c_out, bn_momentum, stride=1, activate_shortcut=False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return _conv(c_in, c_out, 3, stride)


def _conv(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (kernel**2 * c_out)))
    return conv
