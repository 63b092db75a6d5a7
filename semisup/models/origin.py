"""Where the weights come from that a recipe's `model:` names, and what they expect of their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semisup.models.foreign import file_shapes, is_ours
from semisup.models.from_timm import PRETRAINED, timm_source, weights_of
from semisup.models.from_torchvision import torchvision_sized, weights_file, weights_name
from semisup.models.prepared import NORMALIZATIONS, InputSpec
from semisup.records import file_digest

__all__ = ["TIMM", "TORCHVISION", "Origin", "file_origin", "input_spec", "weights_origin"]

TIMM, TORCHVISION = "timm/", "torchvision/"
IMAGENET_SIDE = 224
"""Pixels; what most weights were trained on."""


@dataclass(frozen=True)
class Origin:
    """Published or own weights of a network, and their images.

    Attributes:
        source: what they are, for people; of a file its name alone, as it is told wherever the network goes.
        file: that they are read from; None: torchvision's own.
        hash: sha256 of their file, or its address, which has a hash in its name.
        license: as their makers state it, or "unknown".
        size: side of their images in pixels.
        mean: of their images, per channel, in [0, 1].
        std: likewise.
    """

    source: str
    file: Path | None
    hash: str
    license: str
    size: int
    mean: list[float]
    std: list[float]

    def __str__(self) -> str:
        """Say it as the plan does."""
        return f"{self.source}, license {self.license}"


def weights_origin(name: str, options: Mapping[str, Any]) -> Origin | None:
    """Find the weights that a model starts from by its own options; None: it starts from random ones.

    Published weights of timm are fetched, unless cached.

    Args:
        name: of the backbone.
        options: its own.

    Raises:
        SemisupError: they cannot be read or fetched.
    """
    weights = options.get("weights")
    if weights is None:
        return None
    if name.startswith(TIMM):
        bare = name.removeprefix(TIMM)
        source = timm_source(bare)
        path = weights_of(bare) if weights == PRETRAINED else Path(weights)
        what = f"{source.hub} of the hub" if weights == PRETRAINED else path.name
        stated = source.license if weights == PRETRAINED else "unknown (one's own file)"
        return Origin(what, path, file_digest(path), stated, source.size, source.mean, source.std)
    file = weights_file(weights)
    if file is not None:
        mean, std = NORMALIZATIONS["imagenet"]
        return Origin(file.name, file, file_digest(file), "unknown (one's own file)", IMAGENET_SIDE, mean, std)
    from torchvision import models

    found = models.get_model_weights(name.removeprefix(TORCHVISION))[weights_name(weights)]
    images = found.transforms()
    stated = str(found.meta.get("license", "unknown"))
    size = images.crop_size[0]
    return Origin(f"{found} of torchvision", None, found.url, stated, size, list(images.mean), list(images.std))


def file_origin(name: str, path: Path, image_size: int) -> Origin | None:
    """Say what a file of `init.weights` expects of its images.

    A stage's own file expects what the data are, anybody else's what timm knows of the network, or ImageNet's
    statistics, and of torchvision's networks for one size `IMAGENET_SIDE`.

    Args:
        name: of the backbone.
        path: of the file.
        image_size: side of the data's images, which a network without a size of its own keeps.

    Raises:
        SemisupError: the file cannot be read.
    """
    if is_ours(file_shapes(path), wrapped=name.startswith((TIMM, TORCHVISION))):
        return None
    stated = "unknown (one's own file)"
    if name.startswith(TIMM):
        source = timm_source(name.removeprefix(TIMM))
        size = source.size if source.fixed_size else image_size
        return Origin(path.name, path, file_digest(path), stated, size, source.mean, source.std)
    one_size = name.startswith(TORCHVISION) and torchvision_sized(name.removeprefix(TORCHVISION), image_size)
    size = IMAGENET_SIDE if one_size else image_size
    return Origin(path.name, path, file_digest(path), stated, size, *NORMALIZATIONS["imagenet"])


def input_spec(
    wishes: Mapping[str, Any],
    origin: Origin | None,
    base: InputSpec | None,
    *,
    in_channels: int,
    image_size: int,
    statistics: tuple[Sequence[float], Sequence[float]],
) -> InputSpec | None:
    """Say what a network makes of the images it is given; None: it takes them as they are.

    Args:
        wishes: `resize` and `normalize` of the recipe's `model:`, where given.
        origin: of the weights that it starts from, whose size, mean and std are used unless wished otherwise.
        base: of the earlier stage that it starts from.
        in_channels: of the images given.
        image_size: their side in pixels.
        statistics: mean and standard deviation that they are normalized by.
    """
    data_mean, data_std = (list(values) for values in statistics)
    spec = InputSpec(in_channels, image_size, data_mean, data_std, data_mean, data_std)
    if base is not None:
        spec = InputSpec(base.channels, base.size, base.mean, base.std, data_mean, data_std)
    elif origin is not None:
        spec = InputSpec(3, origin.size, origin.mean, origin.std, data_mean, data_std)
    size, how = wishes.get("resize"), wishes.get("normalize", "auto")
    if how != "auto":
        mean, std = (data_mean, data_std) if how == "data" else NORMALIZATIONS[how]
        spec = InputSpec(max(spec.channels, len(mean)), spec.size, mean, std, data_mean, data_std)
    if size is not None:
        spec = InputSpec(spec.channels, size, spec.mean, spec.std, data_mean, data_std)
    same = spec.size == image_size and spec.channels == in_channels
    return None if same and (spec.mean, spec.std) == (data_mean, data_std) else spec
