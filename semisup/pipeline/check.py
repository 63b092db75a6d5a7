"""Checks of the parts of a recipe whose rules live with the code: methods, models, augmentation policies."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from semisup.augment import check_policy
from semisup.config import Recipe, TrainConfig
from semisup.errors import SemisupError, nearest
from semisup.methods import METHODS
from semisup.methods.base import Range, option_hints, options_of
from semisup.models import check_model
from semisup.models.foreign import file_shapes

__all__ = ["check_method", "check_recipe"]


WORDS = {
    float: "must be a number",
    int: "must be a whole number",
    bool: "must be true or false",
    str: "must be text",
}
"""The types that a method's options may have, beside Literal, lists and mappings of these, and null."""


def check_method(name: str, options: Mapping[str, Any]) -> list[str]:
    """Problems of a `method:` block: unknown name or key, wrong type, out of range. One sentence each."""
    if name not in METHODS:
        return [f"name: unknown method '{name}'{nearest(name, METHODS)}"]
    known = options_of(METHODS[name])
    hints = option_hints(METHODS[name])
    problems = []
    for key, value in options.items():
        if key not in known:
            problems.append(f"{key}: method '{name}' has no such option{nearest(key, known)}")
        elif (problem := _type_problem(hints[key], value)) is not None:
            problems.append(f"{key}: {problem}, got {value!r}")
    return problems


def _type_problem(hint: Any, value: Any) -> str | None:
    """Say how `value` breaks the annotated type, or None."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *notes = get_args(hint)
        problem = _type_problem(inner, value)
        ranges = [note for note in notes if isinstance(note, Range)]
        return problem or next((p for r in ranges if (p := r.problem(value)) is not None), None)
    if origin is Literal:
        choices = get_args(hint)
        return None if value in choices else f"must be one of {', '.join(map(str, choices))}"
    if origin in (Union, types.UnionType):  # X | None
        inner, *_ = get_args(hint)
        problem = None if value is None else _type_problem(inner, value)
        return None if problem is None else f"{problem} or null"
    if origin is list:
        (inner,) = get_args(hint)
        if not isinstance(value, list):
            return "must be a list"
        return next((f"each {p}" for item in value if (p := _type_problem(inner, item)) is not None), None)
    if origin is dict:
        key_hint, item_hint = get_args(hint)
        return _mapping_problem(key_hint, item_hint, value)
    if hint is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else WORDS[float]
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else WORDS[int]
    return None if isinstance(value, hint) else WORDS[hint]


def _mapping_problem(key_hint: Any, hint: Any, value: Any) -> str | None:
    """Likewise of a mapping whose keys and values have these types."""
    if not isinstance(value, dict):
        return "must be a mapping"
    for key, item in value.items():
        if (problem := _type_problem(key_hint, key)) is not None:
            return f"its key {key} {problem}"
        if (problem := _type_problem(hint, item)) is not None:
            return f"its {key} {problem}"
    return None


def check_recipe(recipe: Recipe) -> list[str]:
    """Problems of every method, model, augmentation and weights file that the recipe names, with their full keys."""
    problems = _check_named(check_model, "name", recipe.model, "model")
    for name, stage in recipe.stages.items():
        at = f"stages.{name}"
        if not isinstance(stage, TrainConfig):
            continue
        if stage.model is not None:
            problems += _check_named(check_model, "name", stage.model, f"{at}.model")
        problems += _check_train(stage, at)
    return problems


def _check_named(
    check: Callable[[str, Mapping[str, Any]], list[str]], key: str, given: Mapping[str, Any], at: str
) -> list[str]:
    """Problems of a mapping whose `key` names a thing and whose other keys are the thing's options."""
    if key not in given:  # of a recipe made in Python; in a file it would have been found missing before
        return [f"{at}.{key}: missing"]
    options = dict(given)
    name = str(options.pop(key))
    problems = [f"{at}.{key}: {problem}" for problem in check(name, {})]
    return problems or [f"{at}: {problem}" for problem in check(name, options)]


def _check_view(settings: Mapping[str, Any], at: str) -> list[str]:
    """Problems of a view's policy and of its own list of transforms."""
    if "albumentations" not in settings:
        return _check_named(check_policy, "policy", settings, at)
    from semisup.augment.policies.own import check_own  # which takes a second to import

    options = {"policy": "none"} | {key: value for key, value in settings.items() if key != "albumentations"}
    problems = [f"{at}.albumentations{problem}" for problem in check_own(settings["albumentations"])]
    return problems + _check_named(check_policy, "policy", options, at)


def _check_train(stage: TrainConfig, at: str) -> list[str]:
    if "name" not in stage.method:
        return [f"{at}.method.name: missing"]
    options = dict(stage.method)
    name = str(options.pop("name"))
    problems = [f"{at}.method.{problem}" for problem in check_method(name, options)]
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
    if method.needs_teacher and len(stage.teacher) != 1:
        problems.append(f"{at}.teacher: method '{name}' needs one teacher stage, got {len(stage.teacher)}")
    if not method.needs_teacher and stage.teacher:
        problems.append(f"{at}.teacher: method '{name}' takes no teacher; remove the key")
    if method.needs_pseudo_labels and stage.pseudo_labels is None:
        problems.append(f"{at}.pseudo_labels: method '{name}' needs the name of a relabel or propagate stage")
    if not method.needs_pseudo_labels and stage.pseudo_labels is not None:
        problems.append(f"{at}.pseudo_labels: method '{name}' uses none; remove the key")
    return problems
