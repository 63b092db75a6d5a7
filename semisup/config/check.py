"""A recipe against its models, and its stages against each other: every mistake is collected."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from semisup.config.schema import BACKENDS, KnnConfig, ProbeConfig, PropagateConfig, Recipe, RelabelConfig, StageConfig
from semisup.errors import nearest
from semisup.options import one_of, read, show

__all__ = ["check_recipe"]

# What only a train stage reads: anything else than the default in another stage would be silently ignored.
_TRAIN_ONLY = (
    *("method", "init", "pseudo_labels", "model", "optimizer", "schedule", "batch"),
    *("steps", "epochs", "ema", "refresh_batchnorm", "augment", "stop_on_collapse"),
)

# What only a stage of that kind reads.
_BLOCKS: dict[str, type[Any]] = {
    "relabel": RelabelConfig,
    "propagate": PropagateConfig,
    "probe": ProbeConfig,
    "knn": KnnConfig,
}
_LABELERS = ("relabel", "propagate")
_JUDGES = ("probe", "knn")


def check_recipe(raw: dict[str, Any]) -> list[str]:
    """Check a recipe without references.

    Args:
        raw: what the YAML says, with full spellings (`init` a mapping, `teacher` a list).

    Returns:
        One sentence per problem; none: `Recipe.model_validate(raw)` succeeds.
    """
    clean, problems = read(Recipe, raw)
    if "model" in clean:
        _check_named(clean["model"], "model", problems)
    if "stages" not in raw:
        problems.append("stages: missing; a recipe needs at least one stage, e.g. stages: {train: {...}}")
    elif raw["stages"] == {}:
        problems.append("stages: must have at least one stage")
    if "stages" in clean:
        _check_stages(clean["stages"], raw["stages"], problems)
    return problems


def _check_named(options: dict[str, Any] | None, path: str, problems: list[str]) -> None:
    """Require `name` in a method's or model's mapping; which names exist is the pipeline's knowledge."""
    if options is None:
        return
    if "name" not in options:
        problems.append(f"{path}.name: missing")
    elif not isinstance(options["name"], str) or not options["name"]:
        problems.append(f"{path}.name: must be text, not {show(options['name'])}")


def _check_stages(stages: dict[str, dict[str, Any]], raw: dict[str, Any], problems: list[str]) -> None:
    """Check each stage by itself and its references to the stages above it.

    Args:
        stages: what is valid of each stage; one that is no mapping is absent.
        raw: all stages as the recipe has them, in order.
        problems: gets one sentence per problem.
    """
    kinds: dict[str, str | None] = {}  # of the stages so far; None where it is wrong, so that nothing follows from it
    for name in raw:
        stage = stages.get(name)
        kinds[name] = None
        if stage is None:
            continue
        path = f"stages.{name}"
        if not re.fullmatch(r"[a-z0-9_]{1,60}", name):
            problems.append(f"stages.{name[:60]}: a stage's name is 1 to 60 lower-case letters, digits and _")
        _check_augment(stage.get("augment", {}), f"{path}.augment", problems)
        given = {key for key, value in raw[name].items() if value is not None}
        kind = stage.get("kind") if "kind" in given else "train"
        if kind == "train":
            _check_train(stage, given, path, problems)
        elif kind in _LABELERS:
            _check_labeler(kind, stage, given, path, problems)
        elif kind in _JUDGES:
            _check_judge(kind, stage, given, path, problems)
        elif kind == "features":
            _check_features(stage, path, problems)
        if kind in ("train", "features", *_LABELERS) and stage.get("of") is not None:
            problems.append(f"{path}.of: only a stage of kind {' or '.join(_JUDGES)} reads it")
        for key, target, wanted in _references(stage):
            wrong = _wrong_reference(target, wanted, name, raw, kinds)
            if wrong:
                problems.append(f"{path}.{key}: {wrong}")
        kinds[name] = kind


def _references(stage: dict[str, Any]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the key, the stage it names and the kinds that stage may have."""
    source = (stage.get("init") or {}).get("from")
    if source is not None:
        yield "init.from", source, ("train",)
    for i, teacher in enumerate(stage.get("teacher", [])):
        yield f"teacher[{i}]", teacher, ("train", "features") if stage.get("kind") == "propagate" else ("train",)
    if stage.get("pseudo_labels") is not None:
        yield "pseudo_labels", stage["pseudo_labels"], _LABELERS
    if stage.get("of") is not None:
        yield "of", stage["of"], ("train", "features")


def _wrong_reference(
    target: str, wanted: tuple[str, ...], stage: str, names: Collection[str], kinds: dict[str, str | None]
) -> str | None:
    """Say why `stage` cannot use `target`; `kinds` has the stages down to `stage` itself, `names` has all."""
    if target == stage:
        return "a stage cannot use itself"
    needed = " or ".join(wanted)
    if target in kinds:
        kind = kinds[target]
        return None if kind in (*wanted, None) else f"'{target}' is a {kind} stage, and a {needed} stage is needed"
    if target in names:
        return f"'{target}' runs later; a stage can only use the stages above it"
    above = [name for name, kind in kinds.items() if kind in wanted]
    return f"no stage '{target}'{nearest(target, above) if above else f'; there is no {needed} stage above it'}"


def _check_train(stage: dict[str, Any], given: set[str], path: str, problems: list[str]) -> None:
    if "method" not in given:
        problems.append(f"{path}.method: missing, e.g. method: {{name: fixmatch}}")
    elif "method" in stage:
        _check_named(stage["method"], f"{path}.method", problems)
    _check_named(stage.get("model"), f"{path}.model", problems)
    if {"steps", "epochs"} <= given:
        problems.append(f"{path}: give steps or epochs, not both")
    elif not {"steps", "epochs"} & given:
        problems.append(f"{path}: needs its length, steps or epochs")
    _check_blocks("train", stage, path, problems)
    init = stage.get("init")
    if init is not None and (init.get("from") is None) == (init.get("weights") is None):
        problems.append(f"{path}.init: needs one of from (a stage) and weights (a file), and not both")
    optimizer = stage.get("optimizer", {})
    if optimizer.get("name", "sgd") == "sgd" and optimizer.get("nesterov", True) and optimizer.get("momentum") == 0:
        problems.append(f"{path}.optimizer: nesterov needs momentum > 0; with momentum 0, set nesterov: false")


def _check_augment(augment: dict[str, Any], path: str, problems: list[str]) -> None:
    """Check `backend` and the form of the views; which policies and transforms exist is the pipeline's knowledge."""
    for view, settings in augment.items():
        if view == "backend":
            if settings not in BACKENDS:
                problems.append(f"{path}.backend: {one_of(settings, BACKENDS)}")
        elif not isinstance(settings, dict):
            problems.append(f"{path}.{view}: must be a mapping, not {show(settings)}")
        elif "policy" not in settings and "albumentations" not in settings:
            problems.append(f"{path}.{view}.policy: missing")
        elif not isinstance(settings.get("policy", "none"), str):
            problems.append(f"{path}.{view}.policy: must be text, not {show(settings['policy'])}")


def _check_blocks(kind: str, stage: dict[str, Any], path: str, problems: list[str]) -> None:
    """Refuse settings of another kind of stage; a resolved recipe spells out their defaults, which are no mistake."""
    for block, config in _BLOCKS.items():
        if block != kind and config(**stage.get(block, {})) != config():
            problems.append(f"{path}.{block}: only a stage of kind {block} reads it")


def _check_labeler(kind: str, stage: dict[str, Any], given: set[str], path: str, problems: list[str]) -> None:
    # One that is there and no valid list was reported before.
    teachers = stage.get("teacher", ["invalid"]) if "teacher" in given else []
    if kind == "relabel" and not teachers:
        problems.append(f"{path}.teacher: missing; a relabel stage needs the stage that predicts the labels")
    if kind == "propagate" and not teachers:
        problems.append(
            f"{path}.teacher: missing; a propagate stage needs a stage whose features it compares images by"
        )
    _check_untrained(kind, stage, path, problems)


def _check_judge(kind: str, stage: dict[str, Any], given: set[str], path: str, problems: list[str]) -> None:
    if "of" not in given:
        problems.append(f"{path}.of: missing; a {kind} stage needs the train stage whose network it judges")
    if stage.get("teacher"):
        problems.append(f"{path}.teacher: a {kind} stage has none; name the stage that it judges with of:")
    _check_untrained(kind, stage, path, problems)


def _check_features(stage: dict[str, Any], path: str, problems: list[str]) -> None:
    _check_named(stage.get("model"), f"{path}.model", problems)
    if stage.get("teacher"):
        problems.append(f"{path}.teacher: a features stage has none")
    _check_untrained("features", stage, path, problems, reads=("model",))


def _check_untrained(
    kind: str, stage: dict[str, Any], path: str, problems: list[str], reads: tuple[str, ...] = ()
) -> None:
    """Refuse what a stage that does not train would silently ignore; `reads` are the keys that it does not."""
    _check_blocks(kind, stage, path, problems)
    default = StageConfig().model_dump()
    for key in (key for key in _TRAIN_ONLY if key not in reads):
        value = stage.get(key, default[key])
        # A resolved recipe spells the defaults out, so only a difference from them is a mistake.
        same = {**default[key], **value} == default[key] if isinstance(default[key], dict) else value == default[key]
        if not same:
            problems.append(f"{path}.{key}: a {kind} stage does not train, so it has no {key}")
