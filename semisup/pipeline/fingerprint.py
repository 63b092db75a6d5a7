"""A planned stage's fingerprint: a hash of all that can change its result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from semisup._version import __version__
from semisup.engine import ranks
from semisup.plugins import source_hashes
from semisup.records import file_digest
from semisup.settings import StageConfig, TrainConfig
from semisup.stages.kinds import finished
from semisup.stages.networks import hashed_model
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictor import MODEL, WEIGHTS
from semisup.stages.views import policy_names

__all__ = ["fingerprint", "stage_settings"]


def fingerprint(plan: Plan, stage: StagePlan, inputs: list[str]) -> str:
    """Return the hash of all that can change a stage's result. A stage without labels is shared by every label budget.

    The device is left out on purpose: its rounding differs, what is learned does not, and a stage trained on a GPU
    machine should serve on a laptop.

    Args:
        plan: data, label draw and the recipe's own settings.
        stage: planned, but for this.
        inputs: fingerprints of the stages that it reads.
    """
    recipe, config = plan.recipe, stage.config
    trains = stage.network is not None
    content: dict[str, Any] = {
        "version": __version__,
        "name": stage.name,
        "stage": _hashed_settings(config),
        "model": None if stage.network is None else hashed_model(stage.network.spec),
        "steps": stage.steps,
        "seed": recipe.seed,
        "init_seed": recipe.seed if recipe.init_seed is None else recipe.init_seed,
        "precision": plan.precision,
        "data": plan.data.hash,
        "flip": plan.data.flip,
        "split": plan.budget.hash if stage.reads_labels else None,
        "inputs": inputs,
        "weights_file": _file_hash(config),
        "oracle_every": recipe.oracle_every if trains and stage.reads_labels else None,  # where looks are made
    }
    if outside := _from_outside(stage):
        content["plugins"] = outside
    if plan.statistics != plan.data.statistics:  # those of a finished stage
        content["statistics"] = plan.statistics
    if recipe.compile and trains:  # other rounding
        content["compile"] = True
    if recipe.data.fit != "crop" and trains:  # squares alone have the same pixels and hash either way
        content["fit"] = recipe.data.fit
    if not recipe.sync_batchnorm and trains and ranks.size() > 1:
        content["batchnorm_of"] = ranks.size()
    if recipe.deterministic and trains:
        content["deterministic"] = True
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _from_outside(stage: StagePlan) -> dict[str, str]:
    """Return the hashes of the registered classes that a train stage uses: another loss is another stage."""
    if stage.network is None or stage.views is None:
        return {}
    policies = list(policy_names(stage.training, stage.views).values())
    return source_hashes(stage.training.method["name"], stage.network.spec.name, policies)


def _hashed_settings(config: StageConfig) -> dict[str, Any]:
    settings = stage_settings(config)
    for key in ("epochs", "steps", "model", "of", "path"):  # hashed as resolved
        settings.pop(key, None)
    if "init" in settings:  # a file counts with its content, wherever it lies
        settings["init"] = {key: value for key, value in settings["init"].items() if key != "weights"}
    return settings


def stage_settings(stage: StageConfig) -> dict[str, Any]:
    """Return a planned stage's settings that differ from the defaults: a new key leaves old stages found.

    Views made on the device go without saying, whether they were asked for or chosen.
    """
    settings = stage.model_dump(exclude_defaults=True) | {"kind": stage.kind}
    if settings.get("augment", {}).get("backend") == "device":
        settings["augment"] = {view: value for view, value in settings["augment"].items() if view != "backend"}
    return settings


def _file_hash(stage: StageConfig) -> str | None:
    path = stage.init.weights if isinstance(stage, TrainConfig) and stage.init is not None else None
    if isinstance(stage, finished.Config):
        path = str(Path(str(stage.path)) / WEIGHTS)
    if path is None:
        return None
    described = Path(path).with_name(MODEL)  # says which classes a head tells apart, and what images are to be like
    return "+".join(map(file_digest, [Path(path), *([described] if described.is_file() else [])]))
