"""What pretrained weights expect of their images, done inside the network: channels, size and normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.models.classifier import feature_width
from semisup.options import Range, Settings

__all__ = ["NORMALIZATIONS", "InputSpec", "InputWishes", "Prepared", "PreparedMaps", "prepared"]

NORMALIZATIONS = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}
"""Mean and standard deviation of color channels in [0, 1]: torchvision's and timm's default, and Inception's."""


class InputWishes(Settings):
    """Keys of a recipe's `model:` that every backbone has."""

    resize: Annotated[int, Range(8, 1024)] | None = None
    """Side that the images are scaled to before the network, pixels; null: what its weights expect."""
    normalize: Literal["auto", "data", "imagenet", "half"] = "auto"
    """Mean and standard deviation of the network's images; auto: those of its weights, data: the training images'."""


@dataclass(frozen=True)
class InputSpec:
    """What a network makes of the images it is given, which are normalized by the data's statistics.

    Attributes:
        channels: that the network takes; a gray image is repeated.
        size: side of the images that the network takes, in pixels.
        mean: that the network's images are normalized by, per channel, of images in [0, 1].
        std: likewise.
        data_mean: that the given images were normalized by; one number for gray images.
        data_std: likewise.
    """

    channels: int
    size: int
    mean: list[float]
    std: list[float]
    data_mean: list[float]
    data_std: list[float]

    def __str__(self) -> str:
        """Say it as the plan does."""
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"{self.size} px, {self.channels} channels, mean {mean}, std {std}"


class Prepared(nn.Module):
    """A backbone behind its own preprocessing: images `(N, C, S, S)` as the data's statistics normalized them.

    They are scaled with antialiasing, a gray image is repeated, and the data's normalization is replaced by the
    weights'. Images of another side than `image_size`, such as small crops, are scaled by the same factor.

    Attributes:
        network: the backbone inside.
        num_features: its.
        in_channels: of the images given.

    Args:
        network: takes images as `spec` says.
        spec: see `InputSpec`.
        in_channels: 1 or 3.
        image_size: side of the images given, in pixels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, spec: InputSpec, *, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.network = network
        self.num_features = feature_width(network)
        self.in_channels = in_channels
        self.ratio = (spec.size, image_size)
        mean, std, data_mean, data_std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            for values in (spec.mean, spec.std, spec.data_mean, spec.data_std)
        )
        self.register_buffer("scale", (data_std / std).expand(spec.channels, 1, 1).clone(), persistent=False)
        self.register_buffer("shift", ((data_mean - mean) / std).expand(spec.channels, 1, 1).clone(), persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to what the network takes."""
        to, of = self.ratio
        if to != of:
            size = [max(1, round(side * to / of)) for side in images.shape[-2:]]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        return images * self.scale.to(images.dtype) + self.shift.to(images.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to features `(N, num_features)`."""
        features: Tensor = self.network(self.prepare(images))
        return features


class PreparedMaps(Prepared):
    """The same of a backbone that gives maps."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's maps of images `(N, C, H, W)`."""
        maps: list[Tensor] = self.network.maps(self.prepare(images))  # type: ignore[operator]
        return maps


def prepared(network: nn.Module, spec: InputSpec, *, in_channels: int, image_size: int) -> Prepared:
    """Put a backbone behind its preprocessing."""
    cls = PreparedMaps if hasattr(network, "maps") else Prepared
    return cls(network, spec, in_channels=in_channels, image_size=image_size)
