"""A backbone with what stands on top of it: a projector while pretraining, a neck and a linear head afterwards."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from semisup.errors import SemisupError

__all__ = ["Classifier", "Encoder", "Frozen", "backbone_core", "feature_width", "image_channels"]


class Frozen(NamedTuple):
    """What of a backbone does not learn for now; see `semisup.models.freeze`."""

    modules: tuple[str, ...]
    """Paths of modules that stay in eval mode."""
    parameters: tuple[str, ...]
    """Names of parameters that asked for a gradient before."""


class Encoder(nn.Module):
    """A backbone and, kept next to it for pretraining, a projector. The forward gives the backbone's features.

    Attributes:
        backbone: images `(N, C, H, W)` to features `(N, num_features)`.
        projector: features to projections, or None.
        num_features: the backbone's.
        frozen: parts of the backbone that stay in eval mode, or None.

    Raises:
        SemisupError: the backbone has no whole number `num_features`.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.num_features = feature_width(backbone)
        self.backbone = backbone
        self.projector = projector
        self.frozen: Frozen | None = None

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode of all but the frozen parts."""
        super().train(mode)
        _keep_still(self.backbone, self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to features `(N, num_features)`."""
        features: Tensor = self.backbone(images)
        return features

    def project(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to projections, what a contrastive loss compares.

        Raises:
            ValueError: there is no projector.
        """
        if self.projector is None:
            raise ValueError("this encoder has no projector")
        projections: Tensor = self.projector(self.backbone(images))
        return projections


class Classifier(nn.Module):
    """Backbone, neck and linear head: images `(N, C, H, W)` to logits `(N, num_classes)`.

    Attributes:
        backbone: images to features.
        neck: the projection blocks kept from pretraining (`ProjectionHead.truncate`); may be empty.
        head: the linear layer, Glorot-normal weights and zero bias as in google-research/fixmatch.
        num_features: width of what the head sees.
        average_turns: in eval mode, the features (and so the logits) are the mean over an image's four quarter turns.
        frozen: parts of the backbone that stay in eval mode, or None.

    Args:
        backbone: a network with a whole number `num_features`.
        neck: blocks as `semisup.models.heads.build_neck` makes them.
        num_classes: at least 1.
        zero_head: start the head at zero instead, as SimCLRv2 does when it fine-tunes: the first gradient then
            leaves the pretrained layers alone.

    Raises:
        SemisupError: the backbone has no whole number `num_features`, or `num_classes` is not positive.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Sequential, num_classes: int, *, zero_head: bool = False) -> None:
        super().__init__()
        linears = [layer for layer in neck.modules() if isinstance(layer, nn.Linear)]
        self.num_features = linears[-1].out_features if linears else feature_width(backbone)
        self.backbone = backbone
        self.neck = neck
        self.average_turns = False
        self.frozen: Frozen | None = None
        self.head = nn.Linear(self.num_features, num_classes)
        nn.init.zeros_(self.head.bias)
        if zero_head:
            nn.init.zeros_(self.head.weight)
        else:
            nn.init.xavier_normal_(self.head.weight)

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of all but the frozen parts."""
        super().train(mode)
        _keep_still(self.backbone, self.frozen)
        return self

    def features(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to what the head sees, `(N, num_features)`."""
        if self.average_turns and not self.training:
            turns = [self.neck(self.backbone(images.rot90(k, (-2, -1)))) for k in range(4)]
            return torch.stack(turns).mean(0)
        features: Tensor = self.neck(self.backbone(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits `(N, num_classes)`."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _keep_still(backbone: nn.Module, frozen: Frozen | None) -> None:
    for path in () if frozen is None else frozen.modules:
        backbone.get_submodule(path).eval()


def feature_width(backbone: nn.Module) -> int:
    """Return the backbone's `num_features`, the width of its output.

    Raises:
        SemisupError: it has none, or not a whole number.
    """
    width = getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise SemisupError(
            f"backbone {type(backbone).__name__} must have a whole number num_features, the width of its output; "
            f"got {width!r}"
        )
    return width


def image_channels(backbone: nn.Module) -> int:
    """Return the backbone's `in_channels`: 1 if it takes gray images, 3 for color.

    Raises:
        SemisupError: it has none, or not a whole number.
    """
    channels = getattr(backbone, "in_channels", None)
    if not isinstance(channels, int):
        raise SemisupError(
            f"backbone {type(backbone).__name__} must have a whole number in_channels, those of its images; "
            f"got {channels!r}"
        )
    return channels


def backbone_core(backbone: nn.Module) -> tuple[nn.Module, str]:
    """Return the network inside a backbone whose names its makers gave, and the path to it: "", "network." ..."""
    network = getattr(backbone, "network", None)
    if not isinstance(network, nn.Module):
        return backbone, ""
    core, path = backbone_core(network)
    return core, f"network.{path}"
