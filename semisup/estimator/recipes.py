"""The recipe that an estimator's parameters stand for, planned on its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from semisup.config import find_recipe, parse_recipe, replaced
from semisup.data import ImageData
from semisup.errors import SemisupError
from semisup.pipeline.plan import Plan, load_checked, make_plan
from semisup.settings import DataConfig, Recipe, TrackingConfig, TrainConfig
from semisup.settings.read import read_mapping

__all__ = ["Named", "RecipeLike", "plan_of", "recipe_of"]

Named: TypeAlias = str | Mapping[str, Any]
"""A method or a network: its name, or {name: ..., its options}."""
RecipeLike: TypeAlias = str | Path | Mapping[str, Any] | Recipe
STEPS = 1000


def recipe_of(
    recipe: RecipeLike | None, method: Named | None, backbone: Named | None, overrides: Sequence[str]
) -> Recipe:
    """Return the recipe of an estimator; see `SemiSupervisedClassifier`.

    Raises:
        SemisupError: recipe and method are both given, or the recipe is wrong.
    """
    if recipe is None:
        return parse_recipe(_one_stage(method or "fixmatch", backbone or "cnn"), overrides, "parameters")
    if method is not None:
        raise SemisupError("method: is for an estimator without a recipe; a recipe's stages name their own")
    if isinstance(recipe, Recipe):
        if overrides:
            raise SemisupError("overrides: they are for a recipe's file, name or mapping, not for a loaded one")
        return recipe if backbone is None else recipe.model_copy(update={"model": _named(backbone)})
    if backbone is None:
        return load_checked(recipe, overrides, own=False)
    # Before references to the recipe's network are followed, `${model.name}`.
    given = recipe if isinstance(recipe, Mapping) else read_mapping(find_recipe(recipe))
    before = given.get("model")
    model = replaced(before if isinstance(before, Mapping) else {}, _named(backbone))
    return load_checked({**given, "model": model}, overrides, own=False)


def _named(given: Named) -> dict[str, Any]:
    return {"name": given} if isinstance(given, str) else dict(given)


def _one_stage(method: Named, backbone: Named) -> dict[str, Any]:
    stage = {
        "method": _named(method),
        "optimizer": {"name": "adamw", "lr": 2e-3},
        "batch": {"labeled": 64, "unlabeled": 128},
        "ema": "auto",
        "refresh_batchnorm": "auto",
        "steps": STEPS,
    }
    return {"name": "estimator", "model": _named(backbone), "stages": {"train": stage}}


def plan_of(recipe: Recipe, data: ImageData, *, max_steps: int | None, seed: int | None, device: str | None) -> Plan:
    """Plan a recipe on arrays: all of their labels, no tracking, no stage longer than `max_steps`.

    Raises:
        SemisupError: it cannot run on them, or no stage of it ends in a classifier.
    """
    settings: dict[str, Any] = {
        "data": DataConfig(source="npz", flip=data.flip),
        "tracking": TrackingConfig(mlflow=False),
    }
    settings |= {} if seed is None else {"seed": seed}
    settings |= {} if device is None else {"device": device}
    recipe = recipe.model_copy(update=settings)
    plan = make_plan(recipe, data, trial=False)
    longer = [stage.name for stage in plan.stages if max_steps is not None and stage.steps > max_steps]
    if longer and max_steps is not None:
        plan = make_plan(_shortened(recipe, longer, max_steps), data, trial=False)
    last = plan.stages[-1]
    if last.network is None or last.network.kind != "classifier":
        raise SemisupError(f"recipe: its last stage, '{last.name}', leaves no classifier")
    return plan


def _shortened(recipe: Recipe, names: Sequence[str], steps: int) -> Recipe:
    stages = {
        name: stage.model_copy(update={"steps": int(steps), "epochs": None})
        if name in names and isinstance(stage, TrainConfig)
        else stage
        for name, stage in recipe.stages.items()
    }
    return recipe.model_copy(update={"stages": stages})
