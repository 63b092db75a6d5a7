"""Plan of a training stage: its network and method by their shapes, and what its keys ask for that they lack."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from semisup.engine.optim import check_group_lr
from semisup.errors import SemisupError, collecting, first_line, raise_all
from semisup.methods import METHODS, Method
from semisup.models import ModelSpec, count_parameters
from semisup.settings import Input, TrainConfig
from semisup.stages.auto_views import check_auto, choice_note, follows
from semisup.stages.initial import check_model_weights, check_weights_file, networks_within
from semisup.stages.networks import Network, build_method, network_of, stage_network, weightless
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.refresh import refreshes
from semisup.stages.requirements import names_of, require_classifier, require_labels
from semisup.stages.tuning import check_tuning, tune, tuning_note
from semisup.stages.views import check_views, following_background, stage_backend

__all__ = ["plan_training"]


def plan_training(
    whole: Plan, name: str, stage: TrainConfig, earlier: Mapping[str, StagePlan], inputs: Sequence[Input]
) -> StagePlan:
    """Plan a train stage, but for the memory of its step; its method is on the meta device.

    Raises:
        SemisupError: the network or the method cannot be built, or a key asks for what they do not have.
    """
    data = whole.data
    needed = names_of(inputs)
    if METHODS[stage.method["name"]].teacher_gives == "classes":
        for teacher in stage.teacher:
            require_classifier(earlier[teacher], "teacher")
    networks = {other: network for other in needed if (network := earlier[other].network) is not None}
    spec = _describe(whole, stage, networks)
    method = _shapes(whole, stage, spec, networks)
    labeled, unlabeled = method.views.policies("labeled"), method.views.policies("unlabeled")
    weights = loaded = None
    backend, problems = stage.backend, list[str]()
    with collecting(problems):
        if stage.init is None:
            weights = check_model_weights(networks_within(method)[0].backbone, spec)
        elif stage.init.weights is not None:
            loaded = check_weights_file(method, stage.init, Path(stage.init.weights), data.classes)
    with collecting(problems):
        check_group_lr(method, stage.optimizer)
    with collecting(problems):
        check_views(stage, method, data)
        check_auto(whole, stage, method)
        backend = stage_backend(stage, method.views, whole.device, data.size)
    with collecting(problems):
        if labeled:
            require_labels(whole, "method", stage.method["name"])
    steps = _steps(stage, len(data.x_train), len(whole.budget.index), reads_unlabeled=bool(unlabeled))
    pretrained = stage.init is not None or weights is not None
    with collecting(problems):
        check_tuning(method, stage, steps, pretrained=pretrained, compiled=whole.recipe.compile)
    raise_all(problems)
    parameters, described = count_parameters(method.predictor()), network_of(method, spec)
    tune(method, stage, name)
    # As resolved, for all that follows: what is used, not "auto".
    before = follows(stage, whole.recipe.stages)
    followed = following_background(stage, method.views, data.background)
    resolved = {
        "augment": {**(stage.augment if stage.chooses_views else followed), "backend": backend},
        "refresh_batchnorm": refreshes(stage, method, steps, pretrained=pretrained),
    }
    return StagePlan(
        name=name,
        config=stage.model_copy(update=resolved),
        inputs=needed,
        reads_labels=method.trains == "classifier" or stage.pool.keep != "all",
        steps=steps,
        images_per_step=stage.gradient_accumulation
        * ((stage.batch.labeled if labeled else 0) + (stage.batch.unlabeled if unlabeled else 0)),
        parameters=parameters,
        network=described,
        loaded=loaded,
        weights=weights,
        tuning=tuning_note(method, stage, steps),
        short_trainings=stage.chooses_views and before is None,
        choice=choice_note(stage, steps, before),
        views=method.views,
        method=method,
    )


def _describe(whole: Plan, stage: TrainConfig, networks: Mapping[str, Network]) -> ModelSpec:
    data = whole.data
    return stage_network(
        stage,
        whole.recipe.model,
        networks,
        in_channels=data.channels,
        image_size=data.size,
        num_classes=data.num_classes,
        statistics=whole.statistics,
    )


def _shapes(whole: Plan, stage: TrainConfig, spec: ModelSpec, networks: Mapping[str, Network]) -> Method:
    """Return the stage's method without memory for its weights."""
    data = whole.data
    teachers = [copy.deepcopy(networks[teacher].shapes).eval() for teacher in stage.teacher]
    with weightless():
        try:
            return build_method(
                stage,
                spec,
                teachers,
                num_images=len(data.x_train),
                num_labeled=len(whole.budget.index),
                num_unlabeled=min(stage.batch.pool or len(data.x_train), len(data.x_train)),
                statistics=whole.statistics,
                pretrained=False,
            )
        except (RuntimeError, AssertionError) as error:  # torch's words for shapes that do not fit
            raise SemisupError(
                f"model: '{spec.name}' cannot be built for {data.size}x{data.size} images: {first_line(error)}"
            ) from error


def _steps(stage: TrainConfig, images: int, labels: int, *, reads_unlabeled: bool) -> int:
    """Length in steps. An epoch is one pass over the images, of a method that reads labeled ones alone over those."""
    if stage.steps is not None:
        return stage.steps
    images = min(images, stage.batch.pool or images)
    epoch = images / stage.batch.unlabeled if reads_unlabeled else labels / stage.batch.labeled
    return max(1, math.ceil((stage.epochs or 0) * epoch / stage.gradient_accumulation))
