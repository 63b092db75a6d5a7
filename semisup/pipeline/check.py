"""Checks of the parts of a recipe whose rules live with the code: methods, models, augmentation policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semisup.augment import check_policy
from semisup.data.sources import check_source
from semisup.engine import check_compiler, resolve_device, resolve_precision
from semisup.errors import SemisupError, collecting
from semisup.methods import METHODS
from semisup.methods.base import given_to
from semisup.models import check_model
from semisup.models.foreign import file_shapes
from semisup.options import check_named, keys_of, read
from semisup.plugins import load_plugins
from semisup.settings import DataConfig, LossConfig, Recipe
from semisup.settings.labels import parse_labels

__all__ = ["check_blocks", "check_machine", "check_method", "check_place"]


def check_method(given: Any, at: str = "") -> list[str]:
    """Problems of a `method:` block: unknown name or key, wrong type, out of range. One sentence each."""
    return check_named(given, "name", METHODS, "method", at)


def check_blocks(raw: Mapping[str, Any]) -> list[str]:
    """Problems of every method, model, augmentation and weights file that a recipe names, and of its label budget.

    Each with its full key. Values of other types were complained about before.
    """
    load_plugins()
    problems = _check_labels(raw.get("data"))
    problems += check_model(raw["model"], "model") if "model" in raw else []
    for name, stage in _items(raw.get("stages")):
        at = f"stages.{name}"
        if isinstance(stage, Mapping):
            problems += check_model(stage["model"], f"{at}.model") if stage.get("model") is not None else []
            problems += _check_train(stage, at) if stage.get("kind", "train") == "train" else []
    return problems


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _check_labels(data: Any) -> list[str]:
    try:
        parse_labels(data.get("labels", "all") if isinstance(data, Mapping) else "all")
    except SemisupError as error:
        return [str(error)]
    return []


def check_machine(raw: Mapping[str, Any]) -> list[str]:
    """Problems of what a recipe asks of this machine: its device, precision and compiler."""
    settings = {key: raw[key] for key in ("device", "precision", "compile") if key in raw}
    recipe = Recipe.model_validate(read(Recipe, {"name": "x", **settings})[0])
    problems: list[str] = []
    with collecting(problems):
        device = resolve_device(recipe.device)
        resolve_precision(recipe.precision, device)
        if recipe.compile:
            check_compiler(device)
    return problems


def check_place(raw: Mapping[str, Any]) -> list[str]:
    """Problems of where the data are, as far as they can be told without decoding or downloading anything."""
    data = raw.get("data", {})
    clean, wrong = read(DataConfig, data, "data") if isinstance(data, Mapping) else ({}, [])
    problems: list[str] = []
    with collecting(problems):
        check_source(DataConfig.model_validate(clean))
    told = {problem.split(": ")[0] for problem in wrong}  # what is wrong is not missing, too
    return [problem for problem in problems if problem.split(": ")[0] not in told]


def _check_view(settings: Mapping[str, Any], at: str) -> list[str]:
    """Problems of a view's policy and of its own list of transforms."""
    if "albumentations" not in settings:
        return check_policy(settings, at)
    from semisup.augment.policies.own import check_own  # which takes a second to import

    options = {"policy": "none"} | {key: value for key, value in settings.items() if key != "albumentations"}
    problems = [f"{at}.albumentations{problem}" for problem in check_own(settings["albumentations"])]
    return problems + check_policy(options, at)


def _check_train(stage: Mapping[str, Any], at: str) -> list[str]:
    problems = check_method(stage.get("method", {}), f"{at}.method")
    init, augment = stage.get("init"), stage.get("augment")
    if isinstance(init, Mapping) and isinstance(init.get("weights"), str):
        try:
            file_shapes(init["weights"])
        except SemisupError as error:
            problems.append(f"{at}.init.{error}")
    # Whether the method asks for these views depends on its options: see plan.
    for view, settings in _items(augment):
        if view not in ("backend", "policy") and isinstance(settings, Mapping):
            problems += _check_view(settings, f"{at}.augment.{view}")
    method = stage.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    return problems + (_check_needs(stage, name, at) if isinstance(name, str) and name in METHODS else [])


def _says(block: Any, key: str) -> bool:
    return isinstance(block, Mapping) and bool(block.get(key))


def _check_needs(stage: Mapping[str, Any], name: str, at: str) -> list[str]:
    """Problems of what a method needs of earlier stages, and of what it would ignore."""
    method, problems = METHODS[name], []
    teachers, labels = stage.get("teacher", []), stage.get("pseudo_labels")
    takes_teacher = "teacher" in given_to(method)
    if takes_teacher and isinstance(teachers, list) and len(teachers) != 1:
        problems.append(f"{at}.teacher: method '{name}' needs one teacher stage, got {len(teachers)}")
    if not takes_teacher and teachers:
        problems.append(f"{at}.teacher: method '{name}' takes no teacher; remove the key")
    if method.needs_pseudo_labels and labels is None:
        problems.append(f"{at}.pseudo_labels: method '{name}' needs the name of a relabel or propagate stage")
    batch, loss = stage.get("batch"), stage.get("loss")
    if any(_says(loss, key) for key in keys_of(LossConfig)) and not method.reads_loss:
        able = ", ".join(other for other, cls in METHODS.items() if cls.reads_loss)
        problems.append(f"{at}.loss: method '{name}' has a loss of its own; remove the key. These read it: {able}")
    evening = {"batch": (batch, ["balanced"]), "loss": (loss, ["logit_adjustment", "class_weights"])}
    given = [f"{part}.{key}" for part, (value, keys) in evening.items() for key in keys if _says(value, key)]
    if len(given) > 1:
        others = " and ".join(given[1:])
        problems.append(f"{at}.{given[0]}: makes up for unequal classes, as {others} would a second time; choose one")
    if not method.needs_pseudo_labels and labels is not None:
        problems.append(f"{at}.pseudo_labels: method '{name}' uses none; remove the key")
    return problems
