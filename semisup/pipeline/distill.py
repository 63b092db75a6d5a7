"""A finished stage as the teacher of smaller networks: the recipe that says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semisup.config import load_recipe, parse_recipe
from semisup.config.load import read_overrides
from semisup.data.addresses import refuse_recorded
from semisup.errors import SemisupError, raise_all
from semisup.models import check_model
from semisup.pipeline.execute import STORE
from semisup.pipeline.plan import make_plan, needed_stages
from semisup.records import RECORD, read_record
from semisup.settings import Recipe

__all__ = ["distillation", "parse_student"]

STEPS = 1000


def parse_student(text: str) -> dict[str, Any]:
    """Read a network written as `cnn,width=8`: its name, and options as YAML.

    Raises:
        SemisupError: an option without `=`, or an option or a network that there is not.
    """
    name, *options = (word.strip() for word in text.split(","))
    problems: list[str] = []
    given: dict[str, Any] = {"name": name, **read_overrides(options, problems)}
    raise_all(problems or check_model(given, "model"), f"--student {text}")
    return given


def distillation(
    model: Path, students: Sequence[str], *, steps: int = STEPS, data: str | Path | None = None, name: str | None = None
) -> Recipe:
    """Return the recipe of a finished run up to its stage `model`, and a student of that stage for every network.

    The stages before the students are those of the run: whatever runs the recipe next to it finds them finished.

    Args:
        model: folder of a finished stage, in the folder of its run.
        students: networks, as `parse_student` reads them.
        steps: of every student.
        data: where the run's images lie now; None: where they lay, unless that is an address.
        name: of the recipe; None: that of the run and the first student.

    Raises:
        SemisupError: no finished stage of a run, a network that there is not, or other data than those of the run.
    """
    if not (model / RECORD).is_file() or not (model.parent / "recipe.yaml").is_file():
        raise SemisupError(
            f"{model}: not a finished stage in the folder of its run (with stage.json and ../recipe.yaml)"
        )
    networks = [parse_student(text) for text in students]
    recipe = load_recipe(model.parent / "recipe.yaml")
    if model.name not in recipe.stages:
        raise SemisupError(f"{model}: the recipe next to it has no stage '{model.name}'")
    if data is None:
        refuse_recorded(recipe.data.path, "if you trust it, give it: --data ADDRESS")
    before = needed_stages(recipe.stages, model.name)
    raw = recipe.model_copy(update={"stages": before}).model_dump(by_alias=True)
    if data is not None:
        raw["data"]["path"] = str(data)
    names = _names(networks, list(raw["stages"]))
    raw["name"] = name or f"{recipe.name[:60]}-{names[0].replace('_', '-')}"
    for stage, network in zip(names, networks, strict=True):
        raw["stages"][stage] = {
            "teacher": model.name,
            "model": network,
            "method": {"name": "distill", "form": "hinton", "temperature": 2.0},
            "optimizer": {"name": "adamw", "lr": 4e-3},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "batch": {"unlabeled": 128},
            "ema": "auto",
            "refresh_batchnorm": "auto",
            "steps": steps,
        }
    distilled = parse_recipe(raw)
    _require_finished(distilled, model, list(before))
    return distilled


def _names(networks: Sequence[dict[str, Any]], taken: list[str]) -> list[str]:
    """Name a stage after each network: `student_cnn_width_8`, with a number where that is taken."""
    names: list[str] = []
    for network in networks:
        words = [str(network["name"]), *(f"{key}_{value}" for key, value in network.items() if key != "name")]
        wanted = re.sub(r"[^a-z0-9_]+", "_", "_".join(["student", *words]).lower())[:50]
        free = (wanted if i == 1 else f"{wanted}_{i}" for i in range(1, len(networks) + len(taken) + 2))
        names.append(next(word for word in free if word not in [*names, *taken]))
    return names


def _require_finished(recipe: Recipe, model: Path, names: Sequence[str]) -> None:
    """Refuse to train the teacher again: the stages before the students must be the finished ones."""
    planned = {stage.name: stage.fingerprint for stage in make_plan(recipe, trial=False).stages}
    store = model.absolute().parent.parent / STORE
    if planned[model.name] != read_record(model)["fingerprint"]:
        raise SemisupError(
            f"{model}: its data or this version of semisup are not those that it was trained with, so it would be "
            f"trained again; name the data with --data, or run the recipe anew"
        )
    for name in names:
        if not (store / planned[name] / RECORD).exists():
            raise SemisupError(f"{model}: the finished stage '{name}' is not in {store}; run the recipe again")
