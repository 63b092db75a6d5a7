"""Checks of the parts of a recipe whose rules live with the code: methods, models, augmentation policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semisup.augment import check_policy
from semisup.config import Recipe, StageConfig
from semisup.errors import SemisupError
from semisup.methods import METHODS
from semisup.methods.base import given_to
from semisup.models import check_model
from semisup.models.foreign import file_shapes
from semisup.options import check_named

__all__ = ["check_method", "check_recipe"]


def check_method(given: Any, at: str = "") -> list[str]:
    """Problems of a `method:` block: unknown name or key, wrong type, out of range. One sentence each."""
    return check_named(given, "name", METHODS, "method", at)


def check_recipe(recipe: Recipe) -> list[str]:
    """Problems of every method, model, augmentation and weights file that the recipe names, with their full keys."""
    problems = check_model(recipe.model, "model")
    for name, stage in recipe.stages.items():
        at = f"stages.{name}"
        if stage.model is not None:
            problems += check_model(stage.model, f"{at}.model")
        if stage.kind == "train":
            problems += _check_train(stage, at)
    return problems


def _check_view(settings: Mapping[str, Any], at: str) -> list[str]:
    """Problems of a view's policy and of its own list of transforms."""
    if "albumentations" not in settings:
        return check_policy(settings, at)
    from semisup.augment.policies.own import check_own  # which takes a second to import

    options = {"policy": "none"} | {key: value for key, value in settings.items() if key != "albumentations"}
    problems = [f"{at}.albumentations{problem}" for problem in check_own(settings["albumentations"])]
    return problems + check_policy(options, at)


def _check_train(stage: StageConfig, at: str) -> list[str]:
    problems = check_method(stage.method, f"{at}.method")
    name = stage.method.get("name")
    if stage.init is not None and stage.init.weights is not None:
        try:
            file_shapes(stage.init.weights)
        except SemisupError as error:
            problems.append(f"{at}.init.{error}")
    # Whether the method asks for these views depends on its options: see plan.
    for view, settings in stage.view_settings.items():
        problems += _check_view(settings, f"{at}.augment.{view}")
    if name not in METHODS:
        return problems
    method = METHODS[name]
    takes_teacher = "teacher" in given_to(method)
    if takes_teacher and len(stage.teacher) != 1:
        problems.append(f"{at}.teacher: method '{name}' needs one teacher stage, got {len(stage.teacher)}")
    if not takes_teacher and stage.teacher:
        problems.append(f"{at}.teacher: method '{name}' takes no teacher; remove the key")
    if method.needs_pseudo_labels and stage.pseudo_labels is None:
        problems.append(f"{at}.pseudo_labels: method '{name}' needs the name of a relabel or propagate stage")
    if not method.needs_pseudo_labels and stage.pseudo_labels is not None:
        problems.append(f"{at}.pseudo_labels: method '{name}' uses none; remove the key")
    return problems
