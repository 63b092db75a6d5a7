"""The views of a stage: which policies make them, where, and the batches that they come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from semisup.augment import POLICIES, Normalize, build_policy
from semisup.augment.policies.adaptive import Adaptive, Probe
from semisup.augment.policies.backend import HostFirst, ImageByImage, resolve_backend
from semisup.augment.policies.ctaugment import OPERATIONS
from semisup.augment.policies.policy import Augmentation, Policy
from semisup.augment.policies.views import COLOR_POOL, NoAugment, RandAugment
from semisup.data import ImageData, take
from semisup.engine import Batches, TrainingImages
from semisup.errors import nearest, raise_all
from semisup.losses import LabelLoss
from semisup.methods import METHODS, Method, Views
from semisup.models import Classifier
from semisup.options import option_defaults
from semisup.settings import LossConfig, TrainConfig

__all__ = [
    "check_views",
    "following_background",
    "policy_names",
    "stage_backend",
    "stage_batches",
    "stage_policies",
    "view_policy",
]

BLACK = 0.1
"""Brightest background on which bright objects are taken for bright objects on black."""


def stage_backend(stage: TrainConfig, views: Views, device: torch.device, size: int) -> str:
    """Where a stage's views are made of images of so many pixels a side, see `resolve_backend`.

    Raises:
        SemisupError: `augment.backend` asks for albumentations, and one of the policies has no such form.
    """
    return resolve_backend(stage.backend, policy_names(stage, views), device, size)


def policy_names(stage: TrainConfig, views: Views) -> dict[str, str]:
    """View -> name of its policy: the recipe's, else the method's; "none" where the recipe names transforms alone."""
    settings = {view: {"policy": default} for view, default in views.defaults.items()} | stage.view_settings
    return {view: str(settings[view].get("policy", "none")) for view in views.defaults}


def following_background(stage: TrainConfig, views: Views, background: float) -> dict[str, Any]:
    """Return `augment` with what the recipe leaves open about one-channel images on a background that is not black.

    What geometry and cutout bring into the frame then has the background's color, not black; and where that is clearly
    brighter than black, the pool has the operations, too, that are left out for bright objects on black: "solarize",
    and CTAugment's "invert".

    Args:
        stage: of the recipe.
        views: what its method asks for.
        background: see `ImageData.background`; with 0 nothing changes.
    """
    augment = dict(stage.augment)
    for view, name in policy_names(stage, views).items() if background else ():
        options = {field.name for field in dataclasses.fields(POLICIES[name])}
        found = dict(augment.get(view, {"policy": name}))
        if "fill" in options and found.get("fill") is None:
            found["fill"] = background
            augment[view] = found
        if "pool" in options and background > BLACK and found.get("pool") is None:
            whole = COLOR_POOL if POLICIES[name] is RandAugment else OPERATIONS
            found["pool"] = [operation for operation in whole if operation != "color"]
            augment[view] = found
    return augment


def stage_policies(
    augment: dict[str, Any],
    views: Views,
    part: Literal["labeled", "unlabeled"],
    *,
    flip: bool,
    learned: Tensor | None,
    backend: str = "device",
) -> dict[str, Augmentation | HostFirst]:
    """View name -> augmentation: what the recipe's `augment:` says, else the method's default policy.

    Adaptive ones are bound to what the method has `learned`: to the buffer, not to its present values.
    """
    policies: dict[str, Augmentation | HostFirst] = {}
    for view, default in views.policies(part).items():
        own, policy = view_policy(augment, view, default, flip=flip)
        then: Augmentation = policy
        if isinstance(policy, Adaptive) and learned is not None:
            then = policy.bound(learned)
        if backend == "albumentations":
            policies[view] = HostFirst(ImageByImage(own, policy), NoAugment())
        else:
            policies[view] = HostFirst(ImageByImage(own, None), then) if own else then
    return policies


def view_policy(
    augment: Mapping[str, Any], view: str, default: str, *, flip: bool
) -> tuple[Sequence[Mapping[str, Any]], Policy]:
    """Return a view's albumentations transforms, which come first, and its policy.

    Args:
        augment: of the recipe's stage.
        view: name of the view.
        default: policy of a view that the recipe does not name.
        flip: whether the data allow mirroring.
    """
    options = dict(augment.get(view, {"policy": default}))
    own = options.pop("albumentations", ())
    return own, build_policy(options.pop("policy", "none"), options, flip=flip)


def stage_batches(
    stage: TrainConfig,
    method: Method,
    images: TrainingImages,
    *,
    flip: bool,
    normalize: Normalize,
    device: torch.device,
    key: tuple[object, ...],
) -> Batches:
    """Return the batches of a planned train stage, whose `backend` is resolved.

    They have the views that its method asks for, augmented as its recipe says.
    """
    policies = partial(
        stage_policies, stage.augment, method.views, flip=flip, learned=method.learned(), backend=stage.backend
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
        loss=_label_loss(stage, images.labels, method),
        balanced=stage.batch.balanced,
    )


def _label_loss(stage: TrainConfig, labels: Tensor, method: Method) -> LabelLoss | None:
    loss = stage.loss
    if loss == LossConfig():
        return None
    network = method.predictor()
    assert isinstance(network, Classifier)  # as of every method that reads the loss
    return LabelLoss.of(
        labels,
        class_weights=loss.class_weights == "auto",
        logit_adjustment=loss.logit_adjustment,
        focal=loss.focal,
        num_classes=network.head.out_features,
    )


def check_views(stage: TrainConfig, method: Method, data: ImageData) -> None:
    """Refuse what a stage's `augment` says of views that its method does not ask for, or that cannot be made so.

    Raises:
        SemisupError: names the view.
    """
    asked = method.views.defaults
    problems = [
        f"augment.{view}: method '{stage.method['name']}' asks for no such view{nearest(view, [*asked, 'backend'])}"
        for view in stage.view_settings
        if view not in asked
    ]
    problems += [*_adaptive_problems(method, stage), *_own_transform_problems(stage, data)]
    raise_all(problems)


def _adaptive_problems(method: Method, stage: TrainConfig) -> Iterator[str]:
    """Refuse an adaptive policy where nothing is learned, and another policy than a probe where it is learned from."""
    name = stage.method["name"]
    for view, policy in policy_names(stage, method.views).items():
        probes = issubclass(POLICIES[policy], Probe)
        if probes != issubclass(POLICIES[method.views.defaults[view]], Probe):
            what = "is for the view 'probe' of methods that learn rates" if probes else "must be 'ctaugment_probe'"
            yield f"augment.{view}.policy: {what}, got '{policy}'"
        elif issubclass(POLICIES[policy], Adaptive) and method.learned() is None:
            learners = [other for other, cls in METHODS.items() if "ctaugment" in option_defaults(cls)]
            yield (
                f"augment.{view}.policy: method '{name}' learns no rates to draw by as it is set here; "
                f"{' and '.join(learners)} do with `ctaugment: true`; got '{policy}'"
            )


def _own_transform_problems(stage: TrainConfig, data: ImageData) -> Iterator[str]:
    """Run the recipe's own albumentations transforms on one training image.

    Some may fail, or change what the network is fed: size, channels or type.
    """
    for view, settings in stage.view_settings.items():
        if "albumentations" in settings:
            from semisup.augment.policies.own import OwnTransforms  # which takes a second to import

            found = OwnTransforms(settings["albumentations"]).try_on(take(data.x_train, slice(1))[0])
            yield from (f"augment.{view}.albumentations{problem}" for problem in found)
