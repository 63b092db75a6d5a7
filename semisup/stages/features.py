"""Features of the frozen network of an earlier stage, and the record of a stage that evaluates them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.evaluate import predict_logits
from semisup.methods.base import frozen
from semisup.models import count_parameters
from semisup.stages.artifact import Artifact, finish_untrained
from semisup.stages.cache import read_features
from semisup.stages.context import StageContext
from semisup.stages.predictor import load_features

__all__ = ["Layers", "Mirrored", "features_of_images", "finish_evaluated", "frozen_network", "unchanged"]


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Make sure that no bit of a network's weights and buffers (BN statistics) is another one afterwards.

    Raises:
        AssertionError: names what has changed. That is a bug, not a mistake of the user.
    """
    before = _checksums(network)
    yield
    after = _checksums(network)
    changed = [name for name, checksum in after.items() if checksum != before[name]]
    if changed:
        raise AssertionError(f"evaluation has changed the network: {', '.join(changed)}")


def _checksums(network: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in network.state_dict().items()
    }


class Layers(nn.Module):
    """Features (N, D) of a network and, where asked for, the averaged maps of its layers before them, side by side.

    Args:
        network: backbone and neck, as `load_features` gives them.
        layers: whether to look at the layers; the backbone then has `maps`.
        grid: a map becomes the means of its grid x grid parts, D = channels * grid^2. Above 1 the backbone has `maps`,
            and there is no neck, which takes one mean.
    """

    def __init__(self, network: nn.Module, *, layers: bool = False, grid: int = 1) -> None:
        super().__init__()
        self.network = network
        self.layers = layers
        self.grid = grid
        self.widths: dict[str, int] = {}
        """Name -> columns of the last output, in their order: layer1, layer2, ..., features."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, D), the parts next to each other."""
        parts: dict[str, Tensor] = {}
        if self.layers or self.grid > 1:
            backbone, neck = self.network.children()
            maps: list[Tensor] = backbone.maps(images)  # type: ignore[operator]
            looked_at = list(enumerate(maps, start=1))[0 if self.layers else -1 :]
            parts = {f"layer{i}": F.adaptive_avg_pool2d(each, self.grid).flatten(1) for i, each in looked_at}
            if len(list(neck.children())):
                parts["features"] = neck(parts[f"layer{len(maps)}"])
        else:
            parts["features"] = self.network(images)
        self.widths = {name: part.shape[1] for name, part in parts.items()}
        return torch.cat(list(parts.values()), dim=1)

    def split(self, features: Tensor) -> dict[str, Tensor]:
        """Return the parts of an output by their names."""
        return dict(zip(self.widths, features.split(list(self.widths.values()), dim=1), strict=True))


class Mirrored(nn.Module):
    """Features (N, D): the mean of those of images and of their mirror images."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, D) of images (N, C, H, W)."""
        mean: Tensor = (self.features(images) + self.features(images.flip(3))) / 2
        return mean


def features_of_images(
    context: StageContext,
    source: str,
    network: nn.Module,
    part: Literal["train", "test"],
    rows: np.ndarray | None = None,
) -> Tensor:
    """Return the features (N, D) of a part's images, or of some rows of them, on the network's device.

    A features stage has stored them, unless they are looked at in parts, layers or mirrored.

    Args:
        context: of the stage that asks.
        source: name of the stage whose network it is.
        network: that network, as `Layers` or `Mirrored`.
        part: of the data.
        rows: which images.
    """
    images = context.data.x_train if part == "train" else context.data.x_test
    path = context.inputs[source].folder / f"{part}.npy"
    if path.exists() and isinstance(network, Layers) and network.grid == 1 and not network.layers:
        found = read_features(path, rows).to(context.device)
        network.widths = {"features": found.shape[1]}
        return found
    return predict_logits(network, context.clean_batches(images, rows))


def frozen_network(context: StageContext, name: str | None) -> nn.Module:
    """Return the network of an earlier stage, up to its features."""
    assert name is not None
    return frozen(load_features(context.inputs[name].folder, context.device))


def finish_evaluated(
    context: StageContext,
    network: nn.Module,
    files: list[str],
    started: float,
    seconds: float,
    images: int,
    metrics: dict[str, Any],
) -> Artifact:
    """Write the stage's record; `seconds` and `images` are of what was learned from, the rest was evaluation."""
    if "test/confusion" in metrics:
        files = [*files, "confusion.png"]
    return finish_untrained(
        context.folder,
        files,
        metrics,
        name=context.name,
        kind=context.config.kind,
        seconds=seconds,
        images=images,
        evaluation_seconds=time.perf_counter() - started - seconds,
        parameters=count_parameters(network),
    )
