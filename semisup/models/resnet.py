"""Residual networks with a width multiplier, a stem for small images, and SimCLRv2's selective kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import raise_all
from semisup.options import Range, check_options

__all__ = ["ResNet", "ResNet18", "ResNet34", "ResNet50", "SelectiveKernel"]

# depth: (blocks per group, bottleneck?)
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}
SK_RATIO = 0.0625
SK_MIN_WIDTH = 32


class ResNet(nn.Module):
    """ResNet-18, -34 or -50 without its classifier: four groups of blocks, then the mean over the map.

    The depth is the subclass's.

    He et al. 2016, arXiv:1512.03385. With `stem="imagenet"`, `width=1` and no `sk`, parameter names and outputs
    are those of torchvision's network of the same depth, so its weights load by name. The last BN scale of each
    block starts at zero (google-research/simclr does so, torchvision by default does not): each block starts as its
    shortcut. Input `(N, in_channels, H, W)`, output `(N, 512 * width)`, or `(N, 2048 * width)` for ResNet-50.

    Args:
        width: multiplier of all channel counts, at least 1/32; SimCLRv2 uses 1, 2 and 3.
        stem: "cifar" is one 3x3 convolution at full resolution (images up to about 64 px), "imagenet" the 7x7
            convolution and max-pooling that shrink the map by 4.
        sk: selective kernels, together with ResNet-D's stem and shortcuts, as in SimCLRv2 (arXiv:2006.10029).
            ResNet-50 only: the basic blocks of the smaller ones have no published form of it. The "cifar" stem stays
            as it is. One difference from google-research/simclr: its stride-1 projection of the first group
            averages 2x2 pixels too, which ResNet-D (arXiv:1812.01187) does not and neither do we.
        in_channels: 1 for gray images, 3 for color.

    Raises:
        SemisupError: a value out of its range; all of them are listed.
    """

    depth: ClassVar[int]

    def __init__(
        self,
        width: Annotated[float, Range(1 / 32, 1000)] = 1.0,
        stem: Literal["cifar", "imagenet"] = "cifar",
        sk: bool = False,
        *,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        raise_all(check_options(type(self), {"width": width, "stem": stem, "sk": sk}), f"model resnet{self.depth}")
        blocks, bottleneck = DEPTHS[self.depth]
        base = round(64 * width)
        self.conv1 = _stem(stem, in_channels, base, sk=sk)
        self.bn1 = nn.BatchNorm2d(base)
        self.pool = stem == "imagenet"
        c_in = base
        groups: list[nn.Sequential] = []
        for i, count in enumerate(blocks):
            inner = base * 2**i
            c_out = 4 * inner if bottleneck else inner
            layers: list[nn.Module] = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                layers.append(_Bottleneck(c_in, inner, stride, sk=sk) if bottleneck else _Basic(c_in, inner, stride))
                c_in = c_out
            groups.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.num_features = c_in
        self.in_channels = in_channels

    @classmethod
    def conflicts(cls, sk: bool, **_: object) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between the options; see `semisup.options.check_options`."""
        if sk and not DEPTHS[cls.depth][1]:
            yield "sk", f"needs the bottleneck blocks of resnet50: resnet{cls.depth} has none, not true"

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to features `(N, num_features)`."""
        return self.maps(images)[-1].mean(dim=(2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the four groups' maps `(N, channels, h, w)`."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        if self.pool:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        found = []
        for group in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = group(x)
            found.append(x)
        return found


class ResNet18(ResNet):
    """ResNet-18 (arXiv:1512.03385): four groups of basic blocks, then the mean over the map."""

    name = "resnet18"
    depth = 18


class ResNet34(ResNet):
    """ResNet-34 (arXiv:1512.03385): four groups of basic blocks, then the mean over the map."""

    name = "resnet34"
    depth = 34


class ResNet50(ResNet):
    """ResNet-50 (arXiv:1512.03385): four groups of bottleneck blocks, then the mean over the map."""

    name = "resnet50"
    depth = 50


class _Basic(nn.Module):
    """3x3, 3x3, plus the shortcut."""

    def __init__(self, c_in: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(c_in, inner, 3, stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3)
        self.bn2 = _last_bn(inner)
        self.downsample = _shortcut(c_in, inner, stride, average=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x), inplace=True)


class _Bottleneck(nn.Module):
    """1x1, 3x3 (or selective kernels), 1x1 to four times the channels, plus the shortcut."""

    def __init__(self, c_in: int, inner: int, stride: int, *, sk: bool) -> None:
        super().__init__()
        self.conv1 = _conv(c_in, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = SelectiveKernel(inner, inner, stride) if sk else _conv(inner, inner, 3, stride)
        self.bn2 = nn.Identity() if sk else nn.BatchNorm2d(inner)
        self.relu2 = nn.Identity() if sk else nn.ReLU(inplace=True)  # selective kernels end in BN, ReLU and a mean
        self.conv3 = _conv(inner, 4 * inner, 1)
        self.bn3 = _last_bn(4 * inner)
        self.downsample = _shortcut(c_in, 4 * inner, stride, average=sk)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x), inplace=True)


class SelectiveKernel(nn.Module):
    """Two 3x3 streams, mixed per channel by a softmax that looks at the whole image.

    Li et al. 2019, arXiv:1903.06586, in the form of `sk_conv2d` of google-research/simclr: both kernels are 3x3,
    and the mixing network has `max(c_out / 16, 32)` hidden channels. Input `(N, c_in, H, W)`, output
    `(N, c_out, H / stride, W / stride)`, never negative.

    Args:
        c_in: input channels.
        c_out: channels of each stream and of the output.
        stride: of the two streams.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        hidden = max(int(c_out * SK_RATIO), SK_MIN_WIDTH)
        self.conv = _conv(c_in, 2 * c_out, 3, stride)
        self.bn = nn.BatchNorm2d(2 * c_out)
        self.squeeze = _conv(c_out, hidden, 1)
        self.squeeze_bn = nn.BatchNorm2d(hidden)
        self.excite = _conv(hidden, 2 * c_out, 1)

    def streams(self, x: Tensor) -> Tensor:
        """Return both streams, `(N, 2, c_out, H, W)`."""
        return torch.unflatten(F.relu(self.bn(self.conv(x)), inplace=True), 1, (2, -1))

    def mixing(self, streams: Tensor) -> Tensor:
        """Return the weight of each stream, `(N, 2, c_out, 1, 1)`; the two weights of a channel sum to 1."""
        context = streams.mean(dim=(3, 4), keepdim=True).sum(dim=1)
        context = F.relu(self.squeeze_bn(self.squeeze(context)), inplace=True)
        return torch.softmax(torch.unflatten(self.excite(context), 1, (2, -1)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, c_in, H, W)` to `(N, c_out, H / stride, W / stride)`."""
        streams = self.streams(x)
        (first, second), (share, rest) = streams.unbind(1), self.mixing(streams).unbind(1)
        # Not a sum over the axis of streams: that would come out contiguous, and the next layer turn it around again.
        return first * share + second * rest


def _stem(stem: str, in_channels: int, base: int, *, sk: bool) -> nn.Module:
    if stem == "cifar":
        return _conv(in_channels, base, 3)
    if not sk:
        return _conv(in_channels, base, 7, 2)
    # ResNet-D: three 3x3 convolutions in place of the 7x7.
    half = base // 2
    return nn.Sequential(
        _conv(in_channels, half, 3, 2),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        _conv(half, half, 3),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        _conv(half, base, 3),
    )


def _shortcut(c_in: int, c_out: int, stride: int, *, average: bool) -> nn.Module:
    if c_in == c_out and stride == 1:
        return nn.Identity()
    if average and stride > 1:
        # ResNet-D: a strided 1x1 convolution would drop three pixels of four.
        return nn.Sequential(nn.AvgPool2d(2, stride, ceil_mode=True), _conv(c_in, c_out, 1), nn.BatchNorm2d(c_out))
    return nn.Sequential(_conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))


def _last_bn(channels: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    nn.init.zeros_(bn.weight)
    return bn


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
