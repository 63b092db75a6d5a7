"""The training stage: network, method, batches, fit, judgment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from semisup.augment import Normalize, build_policy
from semisup.augment.policies.backend import HostFirst, ImageByImage, resolve_backend
from semisup.augment.policies.ctaugment import CTAugment
from semisup.augment.policies.views import NoAugment
from semisup.config import StageConfig
from semisup.data import ImageData, LabelBudget, is_mapped, take
from semisup.engine import Batches, BatchSource, FitResult, TrainingImages, compile_backbones, fit, seed_for, uncompiled
from semisup.engine.seeding import generator
from semisup.methods import Method, Views
from semisup.models import ModelSpec, WeightsReport, count_parameters, stage_decay
from semisup.stages.artifact import Artifact, finish
from semisup.stages.context import StageContext
from semisup.stages.evaluation import (
    evaluate_classifier,
    evaluate_encoder,
    hidden_label_judge,
    oracle,
    oracle_metrics,
    unlabeled_quality,
)
from semisup.stages.initial import load_initial_weights
from semisup.stages.networks import Network, build_method, projector_widths, stage_network
from semisup.stages.pictures import encoder_pictures
from semisup.stages.predictor import load_network, save_predictor
from semisup.stages.refresh import refresh
from semisup.stages.relabel import read_targets

__all__ = [
    "fit_stage",
    "policy_names",
    "stage_backend",
    "stage_batches",
    "stage_policies",
    "stored_images",
    "train",
    "training_images",
]

CHECKPOINT, CURVE = "checkpoint.pt", "oracle.json"
"""What a stage keeps in its folder only while it is unfinished."""


def training_images(
    data: ImageData, budget: LabelBudget, relabeled: Artifact | None, rows: Tensor | None = None
) -> TrainingImages:
    """What training may see: images, the labels inside the budget, and the pseudo-labels that a stage left.

    Without pseudo-labels `rows` says which images unlabeled batches are made of; None: all of them.
    """
    pool, targets = (rows, None) if relabeled is None else read_targets(relabeled)
    return TrainingImages(
        images=stored_images(data),
        labeled_index=torch.from_numpy(budget.index),
        labels=torch.from_numpy(data.y_train[budget.index]),
        pool=pool,
        targets=targets,
    )


def stored_images(data: ImageData) -> Tensor | NDArray[np.uint8]:
    """The training images as a tensor, without a copy where that is allowed; a memory map as it is."""
    if is_mapped(data.x_train):
        return data.x_train
    writable = data.x_train.flags.writeable  # torch wants no others, though it never writes here
    return torch.from_numpy(data.x_train) if writable else torch.tensor(data.x_train)


def stage_backend(stage: StageConfig, views: Views, device: torch.device, size: int) -> str:
    """Where a stage's views are made of images of so many pixels a side, see `resolve_backend`.

    Raises:
        SemisupError: `augment.backend` asks for albumentations, and one of the policies has no such form.
    """
    return resolve_backend(stage.backend, policy_names(stage, views), device, size)


def policy_names(stage: StageConfig, views: Views) -> dict[str, str]:
    """View -> name of its policy: the recipe's, else the method's; "none" where the recipe names transforms alone."""
    defaults = {**views.policies("labeled"), **views.policies("unlabeled")}
    settings = {view: {"policy": default} for view, default in defaults.items()} | stage.view_settings
    return {view: str(settings[view].get("policy", "none")) for view in defaults}


def stage_policies(
    augment: dict[str, Any],
    views: Views,
    part: Literal["labeled", "unlabeled"],
    *,
    flip: bool,
    rates: Tensor | None,
    backend: str = "device",
) -> dict[str, Callable[[Tensor, Generator], Tensor] | HostFirst]:
    """View name -> augmentation: what the recipe's `augment:` says, else the method's default policy.

    CTAugment's are bound to the `rates` that the method learns: to the buffer, not to its present values.
    """
    policies: dict[str, Callable[[Tensor, Generator], Tensor] | HostFirst] = {}
    for view, default in views.policies(part).items():
        options = dict(augment.get(view, {"policy": default}))
        own = options.pop("albumentations", ())
        policy = build_policy(options.pop("policy", "none"), options, flip=flip)
        then = partial(policy, rates=rates) if isinstance(policy, CTAugment) else policy
        if backend == "albumentations":
            policies[view] = HostFirst(ImageByImage(own, policy), NoAugment())
        else:
            policies[view] = HostFirst(ImageByImage(own, None), then) if own else then
    return policies


def stage_batches(
    stage: StageConfig,
    method: Method,
    images: TrainingImages,
    *,
    flip: bool,
    normalize: Normalize,
    device: torch.device,
    key: tuple[object, ...],
) -> Batches:
    """The batches of a planned train stage, whose `backend` is resolved: the views that its method asks for, augmented
    as its recipe says."""
    policies = partial(
        stage_policies, stage.augment, method.views, flip=flip, rates=method.cta_rates(), backend=stage.backend
    )
    return Batches(
        images,
        labeled=policies("labeled"),
        unlabeled=policies("unlabeled"),
        labeled_size=stage.batch.labeled,
        unlabeled_size=stage.batch.unlabeled,
        normalize=normalize,
        device=device,
        key=key,
    )


def _start(context: StageContext) -> tuple[Method, ModelSpec, WeightsReport | None]:
    """Build the method and give its network the weights to start from."""
    stage, data = context.config, context.data
    networks = {name: _network_of(artifact) for name, artifact in context.inputs.items() if _has_model(artifact)}
    spec = stage_network(
        stage,
        context.recipe.model,
        networks,
        in_channels=data.channels,
        image_size=data.size,
        num_classes=data.num_classes,
    )
    teachers = [load_network(context.inputs[name].folder, context.device) for name in stage.teacher]
    init_seed = context.recipe.seed if context.recipe.init_seed is None else context.recipe.init_seed
    torch.manual_seed(seed_for(init_seed, context.name, "initialisation"))
    source = None if stage.init is None or stage.init.source is None else networks[stage.init.source]
    method = build_method(
        stage,
        spec,
        teachers,
        num_images=len(data.x_train),
        num_labeled=len(context.budget.index),
        statistics=context.statistics,
        zero_head=source is not None and source.kind == "encoder",
        pretrained=stage.init is None,
    )
    report = None
    if stage.init is not None:
        path = (
            context.inputs[stage.init.source].folder / "model.safetensors"
            if stage.init.source is not None
            else Path(str(stage.init.weights))
        )
        report = load_initial_weights(method, stage.init, path, data.classes)
    method = method.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if context.recipe.compile:
        compile_backbones(method)
    return method, spec, report


def _has_model(artifact: Artifact) -> bool:
    return (artifact.folder / "model.json").exists()


def _network_of(artifact: Artifact) -> Network:
    return Network.from_json(json.loads((artifact.folder / "model.json").read_text(encoding="utf-8")))


def _looks(context: StageContext, method: Method) -> int | None:
    """Steps between looks at the test set for an oracle number; None: none."""
    return context.recipe.oracle_every if method.trains == "classifier" and len(context.data.x_test) else None


def fit_stage(context: StageContext, method: Method, batches: BatchSource) -> FitResult:
    """Train a stage's method as its recipe says, with its checkpoints and the oracle's curve in its folder."""
    stage, recipe = context.config, context.recipe
    look = oracle(context, context.folder / CURVE)

    def on_evaluate(step: int, predictor: nn.Module) -> None:
        with uncompiled(recipe.compile):
            look(step, predictor)

    return fit(
        method,
        batches,
        steps=context.steps,
        optimizer=stage.optimizer,
        schedule=stage.schedule,
        ema=stage_decay(stage.ema, context.steps),
        device=context.device,
        precision=context.precision,
        key=(recipe.seed, context.name),
        checkpoint=context.folder / CHECKPOINT,
        checkpoint_seconds=recipe.checkpoint_seconds,
        log_every=recipe.log_every,
        on_log=context.on_log,
        judge=hidden_label_judge(context),
        stop_on_collapse=stage.stop_on_collapse,
        evaluate_every=_looks(context, method),
        on_evaluate=on_evaluate,
    )


def _pool(context: StageContext) -> Tensor | None:
    """Rows that unlabeled batches are made of, if the recipe asks for fewer than all."""
    size, images = context.config.batch.pool, len(context.data.x_train)
    if size is None or size >= images:
        return None
    return torch.randperm(images, generator=generator(context.recipe.seed, context.name, "images"))[:size]


def train(context: StageContext) -> tuple[Artifact, int | None]:
    """Run a training stage in its folder; resumes from the checkpoint there, if any.

    Returns:
        The finished stage, and the step it was resumed from (None: from the start).
    """
    stage, recipe, data = context.config, context.recipe, context.data
    method, spec, report = _start(context)
    relabeled = context.inputs[stage.pseudo_labels] if stage.pseudo_labels is not None else None
    batches = stage_batches(
        stage,
        method,
        training_images(data, context.budget, relabeled, _pool(context)),
        flip=data.flip,
        normalize=context.normalize(),
        device=context.device,
        key=(recipe.seed, context.name),
    )
    looks = _looks(context, method)
    result = fit_stage(context, method, batches)
    raw = method.predictor()
    predictor = raw if result.ema is None else result.ema.module
    started = time.perf_counter()
    if stage.refresh_batchnorm:
        with uncompiled(recipe.compile):
            refresh(context, method, predictor)
    turns = bool(getattr(predictor, "average_turns", False))
    network = Network(spec, method.trains, projector_widths(predictor), turns)
    files = save_predictor(context.folder, predictor, network, context.statistics, data.classes)
    metrics: dict[str, Any] = {f"train/{name}": value for name, value in result.log.items()}
    with uncompiled(recipe.compile):
        if method.trains == "classifier":
            metrics |= evaluate_classifier(context, predictor, raw)
            files += ["confusion.png"] if len(data.x_test) else []
            metrics |= {} if looks is None else oracle_metrics(context.folder / CURVE)
            if method.views.unlabeled:
                metrics |= unlabeled_quality(context, predictor, float(getattr(method, "threshold", 0.95)))
        else:
            metrics |= evaluate_encoder(context, predictor)
            files += encoder_pictures(context, method, predictor, batches)
    np.save(context.folder / "example.npy", take(data.x_train, slice(2)))
    files.append("example.npy")
    artifact = finish(
        context.folder,
        files,
        {
            "name": context.name,
            "method": stage.method["name"],
            "fingerprint": context.folder.name,
            "steps": context.steps,
            "seconds": result.seconds,
            "evaluation_seconds": time.perf_counter() - started,
            "images_per_second": result.images_per_second,
            "parameters": count_parameters(predictor),
            "loaded": None if report is None else str(report),
            "metrics": metrics,
        },
    )
    for name in (CHECKPOINT, CURVE):
        (context.folder / name).unlink(missing_ok=True)
    return artifact, result.resumed_from
