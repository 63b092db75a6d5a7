"""The features stage: what a frozen network sees in every image, computed once for all that read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from semisup.errors import SemisupError
from semisup.options import Range
from semisup.settings import Input, StageConfig
from semisup.settings.schema import Named

if TYPE_CHECKING:  # what a stage runs is imported when it is planned or run: reading recipes waits for none of it
    import numpy as np
    from torch import Tensor, nn

    from semisup.stages.artifact import Artifact
    from semisup.stages.context import StageContext
    from semisup.stages.networks import Network
    from semisup.stages.planned import Plan, StagePlan

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    """A frozen network, by which all images are looked at once."""

    only_with: ClassVar = {"view": ("views", True)}
    kind: Literal["features"] = "features"
    """What the stage does."""
    model: Named | None = None
    """A pretrained network, {name: ..., its options, which give it weights}; null: the recipe's."""
    of: str | None = None
    """An earlier train stage, whose network is looked at instead."""
    grid: Annotated[int, Range(1, 16)] = 1
    """Features are the means of the last map's grid x grid parts, >= 1; 1: what a classifier's head sees."""
    maps: Annotated[int, Range(1, 16)] = 1
    """Last maps of the network that are looked at so, >= 1; above 1 their parts stand next to each other."""
    mirror: bool = False
    """Features are the mean of an image's and its mirror image's."""
    views: Annotated[int, Range(0, 64)] = 0
    """Augmented views of each training image whose features are stored too, >= 0: a head learns its guesses on them."""
    view: Named = {"policy": "randaugment"}
    """How the views are made: {policy: ..., its options}."""


LEAVES = ("features",)
SMALL = 16
"""Images of a view that are drawn together, and that a network of large images looks at together on a CPU, whose caches
hold their maps: EfficientNet-Lite0 at 112 px takes 6 ms of a core for an image then, and 10 in batches of 128."""
LARGE = 64
"""Side of images in pixels, above which they are large."""


def inputs(stage: Config) -> list[Input]:
    """Return the earlier stages that a stage names."""
    return [] if stage.of is None else [Input("of", stage.of, "network")]


def check(stage: Config) -> Iterator[tuple[str, str]]:
    """Yield a key and a sentence for each mistake that the stage alone shows."""
    if stage.of is not None and stage.model is not None:
        yield "model", f"the network is that of '{stage.of}'; leave one of model and of out"


def plan(whole: Plan, name: str, stage: Config, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a features stage. It reads no label of its own, so all budgets share it.

    Raises:
        SemisupError: the model starts from random weights, cannot be built, its weights do not fit, or it has no maps;
            or there is no such policy.
    """
    from semisup.augment import check_policy
    from semisup.errors import raise_all
    from semisup.models import count_parameters
    from semisup.stages.planned import StagePlan
    from semisup.stages.requirements import features_of, names_of, require_grid, require_mirror

    data = whole.data
    network, weights = (earlier[stage.of].network, None) if stage.of is not None else _pretrained(whole, stage)
    planned = StagePlan(
        name=name, config=stage, inputs=names_of(inputs(stage)), reads_labels=False, network=network, weights=weights
    )
    features = features_of(planned)
    if stage.mirror:
        require_mirror("mirror", data)
    for key in ("grid", "maps"):
        require_grid(key, getattr(stage, key), planned, features)
    raise_all(check_policy(stage.view, "view"))
    rows = (1 + stage.views) * len(data.x_train) + len(data.x_test)
    width = stage.grid**2 * stage.maps * features.num_features
    parameters = count_parameters(features) - count_parameters(features.head)
    return replace(planned, parameters=parameters, memory=data.resident_bytes + 2 * rows * width)


def _pretrained(whole: Plan, stage: Config) -> tuple[Network, str]:
    """Return the network of `model`, and what is to be said of its weights."""
    from semisup.settings import TrainConfig
    from semisup.stages.initial import check_model_weights
    from semisup.stages.networks import Network, stage_network

    data = whole.data
    spec = stage_network(
        TrainConfig(model=stage.model),
        whole.recipe.model,
        {},
        in_channels=data.channels,
        image_size=data.size,
        num_classes=data.num_classes,
        statistics=whole.statistics,
    )
    network = Network(spec, "encoder")
    weights = check_model_weights(network.shapes.backbone, spec)
    if weights is None:
        raise SemisupError(
            f"model.weights: a features stage asks a pretrained network, and '{spec.name}' would start from random "
            "weights; give `weights`, e.g. model: {name: timm/vit_small_patch14_dinov2, weights: pretrained}"
        )
    return network, weights


def run(context: StageContext) -> tuple[Artifact, int | None]:
    """Run a features stage: `train.npy` and `test.npy`, (N, D) float16, and the network for all other images.

    Returns:
        The finished stage, and the image it was resumed from (None: from the start).
    """
    from semisup.models import count_parameters
    from semisup.stages.artifact import finish_untrained, write_json
    from semisup.stages.cache import extract, view_files
    from semisup.stages.features import LOOK, Layers
    from semisup.stages.initial import weights_note

    started = time.perf_counter()
    data, config = context.data, context.config
    assert isinstance(config, Config) and context.network is not None
    files, looked_at = _network(context)
    how: dict[str, Any] = {"grid": config.grid, "maps": config.maps, "mirror": config.mirror}
    write_json(context.folder / LOOK, how)
    network = Layers(looked_at, **how).requires_grad_(False).eval()
    width = network(next(context.clean_batches(data.x_train[:1]))).shape[1]
    resumed = images = 0

    def stored(name: str, of: np.ndarray, batches: Callable[[int], Iterator[Tensor]]) -> None:
        nonlocal resumed, images
        resumed += extract(network, batches, len(of), width, context.folder / name)
        images += len(of)
        files.append(name)

    for part, of in (("train", data.x_train), ("test", data.x_test)):
        if len(of):
            stored(f"{part}.npy", of, partial(_clean, context, of))
    for view, name in enumerate(view_files(config.views)):
        stored(name, data.x_train, partial(_augmented, context, view))
    artifact = finish_untrained(
        context.folder,
        [*files, LOOK],
        {},
        name=context.name,
        kind="features",
        seconds=time.perf_counter() - started,
        images=images - resumed or 1,
        parameters=count_parameters(network),
        origins=context.origins(None if config.of is not None else weights_note(context.network.spec)),
    )
    return artifact, resumed or None


def _clean(context: StageContext, images: np.ndarray, start: int) -> Iterator[Tensor]:
    """Yield a part's images from a row on, as they are."""
    import numpy as np

    assert context.network is not None
    spec = context.network.spec
    side = spec.image_size if spec.input is None else spec.input.size
    size = SMALL if side > LARGE and context.device.type == "cpu" else 128
    return context.clean_batches(images, np.arange(start, len(images)), size)


def _augmented(context: StageContext, view: int, start: int) -> Iterator[Tensor]:
    """Yield a view of each training image from a row on; what is drawn depends on the batch's first row alone."""
    import torch

    from semisup.augment import build_policy, to_float
    from semisup.data import take
    from semisup.engine import generator

    config, images, normalize = context.config, context.data.x_train, context.normalize()
    assert isinstance(config, Config)
    options = dict(config.view)
    policy = build_policy(options.pop("policy"), options, flip=bool(context.data.flip))
    for at in range(start, len(images), SMALL):
        read = torch.from_numpy(take(images, slice(at, at + SMALL))).to(context.device)
        drawn = generator(context.recipe.seed, context.name, "view", view, at)
        yield normalize(policy(to_float(read), drawn))


def _network(context: StageContext) -> tuple[list[str], nn.Module]:
    """Write the network that is looked at into the stage's folder; returns the names of its files, and itself."""
    import shutil

    import torch
    from torch import nn

    from semisup.models import Encoder, build_backbone
    from semisup.stages.predictor import MODEL, WEIGHTS, load_features, save_predictor

    config, network = context.config, context.network
    assert isinstance(config, Config) and network is not None
    if config.of is not None:
        source = context.inputs[config.of].folder
        for name in (MODEL, WEIGHTS):
            shutil.copyfile(source / name, context.folder / name)
        return [MODEL, WEIGHTS], load_features(source, context.device)
    spec = network.spec
    backbone = build_backbone(
        spec.name, spec.options, in_channels=spec.in_channels, image_size=spec.image_size, input_spec=spec.input
    )
    encoder = Encoder(backbone.to(context.device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    files = save_predictor(context.folder, encoder, network, context.statistics, context.data.classes)
    return files, nn.Sequential(backbone, nn.Sequential())
