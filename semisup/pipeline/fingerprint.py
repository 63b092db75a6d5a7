"""A planned stage's fingerprint: a hash of all that can change its result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from semisup._version import __version__
from semisup.config import StageConfig
from semisup.plugins import source_hashes
from semisup.stages.networks import hashed_model
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.views import policy_names

__all__ = ["fingerprint", "stage_settings"]

LATER_KEYS = {
    "relabel": ("vote",),
    "probe": ("grid",),
    "knn": ("grid",),
    "propagate": ("grid", "components", "balance", "mirror"),
}
"""Keys that a kind of stage has got later. A fingerprint has them only where they are not at their defaults, so that
stages from before are still found."""


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
    content = {
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
    if recipe.compile and trains:  # other rounding
        content["compile"] = True
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _from_outside(stage: StagePlan) -> dict[str, str]:
    """The hashes of the registered classes that a train stage uses: another loss is another stage."""
    if stage.network is None or stage.views is None:
        return {}
    policies = list(policy_names(stage.config, stage.views).values())
    return source_hashes(stage.config.method["name"], stage.network.spec.name, policies)


def _hashed_settings(config: StageConfig) -> dict[str, Any]:
    settings = stage_settings(config)
    # Steps, model and the judged stage are hashed as resolved; what only a stage of another kind reads changes nothing.
    others = {"relabel", "propagate", "probe", "knn"} - {config.kind}
    unwatched = [] if config.stop_on_collapse else ["stop_on_collapse"]  # a watched stage may have failed
    for key in ("epochs", "steps", "model", "of", *others, *unwatched):
        del settings[key]
    if config.kind in LATER_KEYS:
        own = getattr(config, config.kind)
        for key in LATER_KEYS[config.kind]:
            if getattr(own, key) == getattr(type(own)(), key):
                del settings[config.kind][key]
    return settings


def stage_settings(stage: StageConfig) -> dict[str, Any]:
    """A planned stage's settings as they are hashed: views made on the device go without saying, so that stages made
    before there was a choice are still found."""
    settings = stage.model_dump()
    if settings["augment"].get("backend") != "albumentations":
        settings["augment"].pop("backend", None)
    if stage.init is not None and not stage.init.rename:  # likewise
        del settings["init"]["rename"]
    if not stage.refresh_batchnorm:
        del settings["refresh_batchnorm"]
    if stage.batch.pool is None:
        del settings["batch"]["pool"]
    return settings


def _file_hash(stage: StageConfig) -> str | None:
    if stage.init is None or stage.init.weights is None:
        return None
    with Path(stage.init.weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
