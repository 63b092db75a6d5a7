"""Features of the frozen network of an earlier stage, and the record of a stage that evaluates them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.evaluate import predict_logits
from semisup.methods.base import frozen
from semisup.models import count_parameters
from semisup.records import read_json
from semisup.stages.artifact import Artifact, finish_untrained
from semisup.stages.cache import read_features
from semisup.stages.context import StageContext
from semisup.stages.predictor import load_features

__all__ = ["LOOK", "Layers", "features_of_images", "finish_evaluated", "look", "stored_features", "unchanged"]

LOOK = "look.json"
"""How a features stage looked at its network: options of `Layers`."""


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
    """Features (N, D) of a network and, where asked for, the averaged maps of its layers, side by side.

    Args:
        network: backbone and neck, as `load_features` gives them.
        layers: whether to look at all layers; the backbone then has `maps`.
        grid: a map becomes the means of its grid x grid parts, D = channels * grid^2. Above 1 the backbone has `maps`,
            and there is no neck, which takes one mean.
        maps: how many of the last maps are looked at in place of the features, where grid or maps is above 1.
        mirror: features are the mean of an image's and its mirror image's.
        stored: these are what the features stage has in its files.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        layers: bool = False,
        grid: int = 1,
        maps: int = 1,
        mirror: bool = False,
        stored: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.layers = layers
        self.grid = grid
        self.maps = maps
        self.mirror = mirror
        self.stored = stored
        self.widths: dict[str, int] = {}
        """Name -> columns of the last output, in their order: layer1, layer2, ..., features."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, D), the parts next to each other."""
        if self.mirror:
            return (self._features(images) + self._features(images.flip(3))) / 2
        return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        parts: dict[str, Tensor] = {}
        if self.layers or self.grid > 1 or self.maps > 1:
            backbone, neck = self.network.children()
            maps: list[Tensor] = backbone.maps(images)  # type: ignore[operator]
            looked_at = list(enumerate(maps, start=1))[0 if self.layers else -self.maps :]
            parts = {f"layer{i}": F.adaptive_avg_pool2d(each, self.grid).flatten(1) for i, each in looked_at}
            if len(list(neck.children())):
                parts["features"] = neck(parts[f"layer{len(maps)}"])
        else:
            parts["features"] = self.network(images)
        self.widths = {name: part.shape[1] for name, part in parts.items()}
        return torch.cat(list(parts.values()), dim=1)

    def split(self, features: Tensor) -> dict[str, Tensor]:
        """Return the parts of an output by their names; several maps, where not all layers are probed, are one."""
        if not self.layers:
            return {"features" if self.stored else list(self.widths)[-1]: features}
        return dict(zip(self.widths, features.split(list(self.widths.values()), dim=1), strict=True))


def look(folder: Path, device: torch.device, *, layers: bool = False, grid: int = 1, mirror: bool = False) -> Layers:
    """Return the frozen network of a finished stage, up to its features, and the way it is looked at.

    Args:
        folder: of the stage. What a features stage has stored is looked at its way, unless other parts are asked for.
        device: of the network.
        layers: see `Layers`.
        grid: likewise.
        mirror: likewise.
    """
    network = frozen(load_features(folder, device))
    if layers or grid > 1 or mirror or not (folder / "train.npy").exists():
        return Layers(network, layers=layers, grid=grid, mirror=mirror)
    settings = folder / LOOK
    return Layers(network, stored=True, **(read_json(settings) if settings.exists() else {}))


def stored_features(folder: Path, network: Layers, part: str, rows: np.ndarray | None = None) -> Tensor | None:
    """Return the features (N, D) that a features stage has stored, on the CPU; None: looked at in another way, or none.

    Args:
        folder: of the stage.
        network: its network, as `look` gives it.
        part: of the data, train or test.
        rows: which images; None: all of them.
    """
    path = folder / f"{part}.npy"
    if not network.stored or not path.exists():
        return None
    found = read_features(path, rows)
    network.widths = {"features": found.shape[1]}
    return found


def features_of_images(
    context: StageContext,
    source: str,
    network: Layers,
    part: Literal["train", "test"],
    rows: np.ndarray | None = None,
) -> Tensor:
    """Return the features (N, D) of a part's images, or of some rows of them, on the network's device.

    A features stage has stored them, unless they are looked at in another way than its own.

    Args:
        context: of the stage that asks.
        source: name of the stage whose network it is.
        network: that network, as `look` gives it.
        part: of the data.
        rows: which images.
    """
    stored = stored_features(context.inputs[source].folder, network, part, rows)
    if stored is not None:
        return stored.to(context.device)
    images = context.data.x_train if part == "train" else context.data.x_test
    return predict_logits(network, context.clean_batches(images, rows))


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
        origins=context.origins(),
    )
