"""The features stage: what a frozen pretrained network sees in every image, computed once for all that read it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from semisup.config import StageConfig
from semisup.errors import SemisupError
from semisup.methods.base import frozen
from semisup.models import Encoder, build_backbone, count_parameters, feature_width
from semisup.stages.artifact import Artifact, finish_untrained
from semisup.stages.cache import extract
from semisup.stages.context import StageContext
from semisup.stages.initial import check_model_weights
from semisup.stages.networks import Network, stage_network, weightless
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictor import save_predictor

__all__ = ["inputs", "plan", "run"]


def inputs(stage: StageConfig) -> tuple[str, ...]:
    """Return the names of the earlier stages that a stage reads: none."""
    return ()


def plan(whole: Plan, name: str, stage: StageConfig, earlier: Mapping[str, StagePlan]) -> StagePlan:
    """Plan a features stage. It reads no label, so all budgets share it.

    Raises:
        SemisupError: the model starts from random weights, cannot be built, or its weights do not fit.
    """
    data = whole.data
    spec = stage_network(
        stage,
        whole.recipe.model,
        {},
        in_channels=data.channels,
        image_size=data.size,
        num_classes=data.num_classes,
        statistics=whole.statistics,
    )
    network = Network(spec, "encoder")
    with weightless():
        backbone = network.build_classifier().backbone
    weights = check_model_weights(backbone, spec)
    if weights is None:
        raise SemisupError(
            f"model.weights: a features stage asks a pretrained network, and '{spec.name}' would start from random "
            "weights; give `weights`, e.g. model: {name: timm/vit_small_patch14_dinov2, weights: pretrained}"
        )
    rows = len(data.x_train) + len(data.x_test)
    return StagePlan(
        name=name,
        config=stage,
        inputs=(),
        reads_labels=False,
        parameters=count_parameters(backbone),
        network=network,
        weights=weights,
        memory=data.resident_bytes + 2 * rows * feature_width(backbone),
    )


def run(context: StageContext) -> tuple[Artifact, int | None]:
    """Run a features stage: `train.npy` and `test.npy`, (N, D) float16, and the network for all other images.

    Returns:
        The finished stage, and the image it was resumed from (None: from the start).
    """
    started = time.perf_counter()
    data, network = context.data, context.network
    assert network is not None
    spec = network.spec
    backbone = build_backbone(
        spec.name, spec.options, in_channels=spec.in_channels, image_size=spec.image_size, input_spec=spec.input
    )
    encoder = Encoder(frozen(backbone.to(context.device, memory_format=torch.channels_last)))  # type: ignore[call-overload]
    files = save_predictor(context.folder, encoder, network, context.statistics, data.classes)
    resumed = 0
    for part, images in (("train", data.x_train), ("test", data.x_test)):
        if len(images):

            def batches(start: int, images: np.ndarray = images) -> Iterator[Tensor]:
                return context.clean_batches(images, np.arange(start, len(images)))

            path = context.folder / f"{part}.npy"
            resumed += extract(encoder.eval(), batches, len(images), encoder.num_features, path)
            files.append(path.name)
    artifact = finish_untrained(
        context.folder,
        files,
        {},
        name=context.name,
        kind="features",
        seconds=time.perf_counter() - started,
        images=len(data.x_train) + len(data.x_test) - resumed or 1,
        parameters=count_parameters(encoder),
    )
    return artifact, resumed or None
