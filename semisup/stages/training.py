"""Training of a stage: network, method, batches, fit, evaluation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisup.engine import (
    Batches,
    BatchSource,
    Checkpoints,
    CollapseWatch,
    FitResult,
    FitSettings,
    Log,
    Looks,
    Observer,
    Quality,
    compile_backbones,
    fit,
    ranks,
    seed_for,
    uncompiled,
)
from semisup.engine.seeding import generator
from semisup.methods import METHODS, Method
from semisup.models import WeightsReport, count_parameters, stage_decay
from semisup.settings import TrainConfig
from semisup.stages.artifact import Artifact, finish
from semisup.stages.auto_views import CHOICE, Choice, choose_views, chosen_before
from semisup.stages.context import StageContext
from semisup.stages.encoder_figures import encoder_figures
from semisup.stages.evaluation import (
    evaluate_classifier,
    evaluate_encoder,
    oracle,
    oracle_metrics,
    quality_of_pseudo_labels,
    unlabeled_quality,
)
from semisup.stages.initial import (
    load_initial_weights,
    weights_note,
)
from semisup.stages.networks import (
    build_method,
)
from semisup.stages.pool import own_images, pool_metrics
from semisup.stages.predictor import (
    WEIGHTS,
    load_headless,
    load_network,
    read_network,
    save_examples,
    save_predictor,
)
from semisup.stages.refresh import refresh, refreshes
from semisup.stages.targets import training_images
from semisup.stages.tuning import frozen_until, merge, tune
from semisup.stages.views import stage_batches

__all__ = ["fit_quietly", "fit_stage", "help_to_train", "train"]

CHECKPOINT, CURVE = "checkpoint.pt", "oracle.json"
"""What a stage keeps in its folder only while it is unfinished."""


def _start(context: StageContext, pool: Tensor | None) -> tuple[Method, WeightsReport | None]:
    """Build the method and give its network the weights to start from."""
    stage = context.config
    assert isinstance(stage, TrainConfig) and context.network is not None
    init = stage.init
    load = load_network if METHODS[stage.method["name"]].teacher_gives == "classes" else load_headless
    teachers = [load(context.inputs[name].folder, context.device) for name in stage.teacher]
    init_seed = context.recipe.seed if context.recipe.init_seed is None else context.recipe.init_seed
    torch.manual_seed(seed_for(init_seed, context.name, "initialisation"))
    source = None if init is None or init.source is None else context.inputs[init.source].folder
    method = build_method(
        stage,
        context.network.spec,
        teachers,
        num_images=len(context.data.x_train),
        num_labeled=len(context.budget.index),
        num_unlabeled=None if pool is None else len(pool),
        statistics=context.statistics,
        zero_head=source is not None and read_network(source).kind == "encoder",
        pretrained=init is None,
    )
    report = None
    if init is not None:
        path = Path(str(init.weights)) if source is None else source / WEIGHTS
        report = load_initial_weights(method, init, path, context.data.classes)
    tune(method, stage, f"{init_seed}/{context.name}")
    method = method.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if context.recipe.compile:
        compile_backbones(method)
    return method, report


def _looks(context: StageContext, method: Method) -> int | None:
    """Return steps between looks at the test set for an oracle number; None: none."""
    return context.recipe.oracle_every if method.trains == "classifier" and len(context.data.x_test) else None


def _batches(context: StageContext, method: Method, pool: Tensor | None) -> Batches:
    stage = context.config
    assert isinstance(stage, TrainConfig)
    relabeled = context.inputs[stage.pseudo_labels] if stage.pseudo_labels is not None else None
    return stage_batches(
        stage,
        method,
        training_images(context.data, context.budget, relabeled, pool),
        flip=context.data.flip,
        normalize=context.normalize(),
        device=context.device,
        key=(context.recipe.seed, context.name),
    )


def _settings(context: StageContext) -> FitSettings:
    stage, recipe = context.config, context.recipe
    assert isinstance(stage, TrainConfig)
    return FitSettings(
        steps=context.steps,
        optimizer=stage.optimizer,
        schedule=stage.schedule,
        device=context.device,
        precision=context.precision,
        ema=stage_decay(stage.ema, context.steps),
        key=(recipe.seed, context.name),
        frozen_until=frozen_until(stage, context.steps),
        accumulate=stage.gradient_accumulation,
        sync_batchnorm=recipe.sync_batchnorm,
        log_every=recipe.log_every,
    )


def fit_stage(context: StageContext, method: Method, batches: BatchSource) -> FitResult:
    """Train a stage's method as its recipe says, with its checkpoints and the oracle's curve in its folder."""
    stage, recipe = context.config, context.recipe
    assert isinstance(stage, TrainConfig)
    look = oracle(context, context.folder / CURVE)

    def as_written(step: int, predictor: nn.Module) -> None:
        with uncompiled(recipe.compile):
            look(step, predictor)

    observers: list[Observer] = [
        Log(context.on_log),
        Quality(quality_of_pseudo_labels(context)),
        CollapseWatch(stop=stage.stop_on_collapse),
    ]
    every = _looks(context, method)
    if every is not None:
        observers.append(Looks(every, as_written))
    observers.append(Checkpoints(context.folder / CHECKPOINT, recipe.checkpoint_seconds))
    return fit(method, batches, _settings(context), observers)


def _pool(context: StageContext) -> Tensor | None:
    """Rows that unlabeled batches are made of, if the recipe asks for fewer than all; the same on every rank."""
    stage = context.config
    assert isinstance(stage, TrainConfig)
    size, images = stage.batch.pool, len(context.data.x_train)
    source = stage.init.source if stage.init is not None else None
    own = own_images(context, stage.pool, source or next(iter(stage.teacher), None))
    if own is not None:
        # An image at the limit may be within it for one rank and beyond it for another, which has rounded otherwise.
        own = own if ranks.size() == 1 else _of_rank_0(own)
        return torch.nonzero(own).flatten()
    if size is None or size >= images:
        return None
    return torch.randperm(images, generator=generator(context.recipe.seed, context.name, "images"))[:size]


def _of_rank_0(mask: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(ranks.same_everywhere(lambda: mask.numpy().tobytes())), dtype=torch.bool)


def fit_quietly(context: StageContext) -> nn.Module:
    """Train a stage without a look at it, and return its predictor."""
    stage = context.config
    assert isinstance(stage, TrainConfig) and context.network is not None
    pool = _pool(context)
    method, _ = _start(context, pool)
    batches = _batches(context, method, pool)
    fit(method, batches, _settings(context))
    pretrained = stage.init is not None or weights_note(context.network.spec) is not None
    if refreshes(stage, method, context.steps, pretrained=pretrained):
        refresh(context, method, method.predictor(), batches.pool)
    merge(stage, method)
    return method.predictor()


def help_to_train(context: StageContext) -> None:
    """Take this rank's part in a training stage that rank 0 runs by `train`; nothing is written."""
    pool = _pool(context)
    method, _ = _start(context, pool)
    context, _ = choose_views(context, method.views, fit_quietly)
    fit(method, _batches(context, method, pool), _settings(context))


def _own_weights(context: StageContext) -> str | None:
    """Return which published or own weights the network begins with; None: random ones, or those of `init`."""
    stage = context.config
    assert isinstance(stage, TrainConfig) and context.network is not None
    return None if stage.init is not None else weights_note(context.network.spec)


def _origins(context: StageContext) -> list[str]:
    """Return which published or own weights a stage and those that it reads began with, and their licenses."""
    stage = context.config
    assert isinstance(stage, TrainConfig)
    own = _own_weights(context)
    if stage.init is not None and stage.init.weights is not None:
        own = f"{Path(stage.init.weights).name}, license unknown (one's own file)"
    return context.origins(own)


def _data_note(context: StageContext) -> dict[str, Any]:
    """Return what a stage's record says of the images and labels that it was given."""
    data, budget = context.data, context.budget
    return {
        "source": data.name,
        "hash": data.hash,
        "split_hash": budget.hash,
        "images": len(data.x_train),
        "labels": len(budget.index),
        "validation": len(data.validation(budget.validation)[1]),
        "test": len(data.x_test),
    }


def _chosen(context: StageContext, choice: Choice | None) -> dict[str, Any]:
    """Return what a stage's record says of the views that its labels chose."""
    strength = chosen_before(context) if choice is None else choice.strength
    return {"chosen": None if choice is None else str(choice), "strength": strength}


def _evaluate(
    context: StageContext, method: Method, predictor: nn.Module, raw: nn.Module
) -> tuple[dict[str, Any], float, list[str]]:
    """Return a classifier's metrics, its temperature and the names of its figures."""
    metrics, temperature, files = evaluate_classifier(context, predictor, raw)
    if _looks(context, method) is not None:
        metrics |= oracle_metrics(context.folder / CURVE)
    if method.views.unlabeled:
        metrics |= unlabeled_quality(context, predictor, float(getattr(method, "threshold", 0.95)))
    return metrics, temperature, files


def _saved(context: StageContext, predictor: nn.Module, temperature: float) -> list[str]:
    """Write the network, and two images to try it with; return the names of the files."""
    assert context.network is not None
    files = save_predictor(
        context.folder,
        predictor,
        context.network,
        context.statistics,
        context.data.classes,
        temperature=temperature,
        fit=context.recipe.data.fit,
    )
    return [*files, save_examples(context.folder, context.data.x_train)]


def train(context: StageContext) -> tuple[Artifact, int | None]:
    """Run a training stage in its folder; resumes from the checkpoint there, if any.

    Returns:
        The finished stage, and the step it was resumed from (None: from the start).
    """
    pool = _pool(context)
    method, report = _start(context, pool)
    context, choice = choose_views(context, method.views, fit_quietly)
    stage, recipe, data = context.config, context.recipe, context.data
    assert isinstance(stage, TrainConfig)
    batches = _batches(context, method, pool)
    result = fit_stage(context, method, batches)
    raw = method.predictor()
    predictor = raw if result.ema is None else result.ema.module
    started = time.perf_counter()
    merge(stage, method, predictor)
    if stage.refresh_batchnorm:
        with uncompiled(recipe.compile):
            refresh(context, method, predictor, batches.pool)
    metrics: dict[str, Any] = {f"train/{name}": value for name, value in result.log.items()}
    if stage.pool.keep != "all":
        metrics |= pool_metrics(len(data.x_train), len(batches.pool))
    if choice is not None:
        metrics |= {f"choice/{name}": accuracy for name, accuracy in choice.accuracy.items()}
    with uncompiled(recipe.compile):
        if method.trains == "classifier":
            evaluated, temperature, files = _evaluate(context, method, predictor, raw)
        else:
            evaluated, temperature = evaluate_encoder(context, predictor), 1.0
            files = encoder_figures(context, method, predictor, batches)
    files += _saved(context, predictor, temperature)
    artifact = finish(
        context.folder,
        files,
        {
            "name": context.name,
            "method": stage.method["name"],
            "fingerprint": context.folder.name,
            "steps": context.steps,
            "seconds": result.seconds + (0.0 if choice is None else choice.seconds),
            "evaluation_seconds": time.perf_counter() - started,
            "images_per_second": result.images_per_second,
            "parameters": count_parameters(predictor),
            "loaded": None if report is None else str(report),
            "weights": _own_weights(context),
            "origins": _origins(context),
            "data": _data_note(context),
            **_chosen(context, choice),
            "settings": stage.model_dump(exclude_defaults=True, by_alias=True, mode="json"),
            "metrics": metrics | evaluated,
        },
    )
    for name in (CHECKPOINT, CURVE, CHOICE):
        (context.folder / name).unlink(missing_ok=True)
    return artifact, result.resumed_from
