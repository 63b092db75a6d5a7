"""From the last map of a backbone back to an image-sized one."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.models.classifier import feature_width
from semisup.models.cnn import conv_bn_relu

__all__ = ["MapDecoder", "last_map"]


class MapDecoder(nn.Module):
    """3x3 convolution, BN, ReLU; enlarged bilinearly to the size asked for; the same again; 3x3 convolution.

    Input the backbone's last map `(N, num_features, h, w)`, output `(N, out_channels, H, W)`.

    Args:
        backbone: one that gives maps; only its width is read.
        width: channels between the convolutions.
        out_channels: of the output.
        method: who asks, for the error.

    Raises:
        SemisupError: the backbone gives features alone.
    """

    def __init__(self, backbone: nn.Module, width: int, out_channels: int, *, method: str) -> None:
        super().__init__()
        if not hasattr(backbone, "maps"):
            raise SemisupError(
                f"model: method '{method}' decodes the maps of a backbone, and {type(backbone).__name__} gives only "
                "their mean; take cnn, wrn, a resnet without 'torchvision/', or vit"
            )
        self.narrow = conv_bn_relu(feature_width(backbone), width)
        self.refine = conv_bn_relu(width, width)
        self.out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Map `(N, num_features, h, w)` to `(N, out_channels, *size)`."""
        large = F.interpolate(self.narrow(maps), size=size, mode="bilinear", align_corners=False)
        decoded: Tensor = self.out(self.refine(large))
        return decoded


def last_map(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return the map `(N, num_features, h, w)` whose mean the features are, of a backbone that has one."""
    maps: list[Tensor] = cast(Any, backbone).maps(images)
    return maps[-1]
