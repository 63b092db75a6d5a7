"""A recipe against its models, and its stages against each other: every mistake is collected."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from semisup.errors import nearest
from semisup.options import one_of, read, show, unread
from semisup.settings.schema import BACKENDS, Input, StageConfig
from semisup.stages.kinds import KINDS, CheckedRecipe, kind_of, name_of

__all__ = ["check_recipe"]


def check_recipe(raw: dict[str, Any]) -> list[str]:
    """Check a recipe without references.

    Args:
        raw: what the YAML says, with full spellings (`init` a mapping, `teacher` a list).

    Returns:
        One sentence per problem; none: `Recipe.model_validate(raw)` succeeds.
    """
    nested = list(_nested(raw.get("stages")))
    clean, problems = read(CheckedRecipe, _without_nested(raw, nested))
    problems += [sentence for _, _, sentence in nested]
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
    found: dict[str, str | None] = {}  # kinds of the stages so far; None: unknown, so that nothing follows from it
    for name in raw:
        stage = stages.get(name)
        found[name] = None
        if stage is None:
            continue
        path = f"stages.{name}"
        if not re.fullmatch(r"[a-z0-9_]{1,60}", name):
            problems.append(f"stages.{name[:60]}: a stage's name is 1 to 60 lower-case letters, digits and _")
        config = _config_of(stage) if ("kind" in stage) == ("kind" in raw[name]) else None
        if config is None:
            continue  # what a stage of an unknown kind may say is unknown too
        kind = kind_of(config.kind)
        _check_named(stage.get("model"), f"{path}.model", problems)
        if stage.get("method"):
            _check_named(stage["method"], f"{path}.method", problems)
        _check_augment(stage.get("augment", {}), f"{path}.augment", problems)
        given = {key for key, value in raw[name].items() if value is not None}
        refused = given - set(stage)  # what is there and wrong was reported before
        defaults = {name: field.default for name, field in type(config).model_fields.items()}
        for key, sentence in (*kind.check(config), *unread(config.only_with, dict(config), defaults)):
            if key not in refused and (key or not refused):
                problems.append(f"{path}.{key}: {sentence}" if key else f"{path}: {sentence}")
        for one in kind.inputs(config):
            wrong = _wrong_reference(one, name, raw, found)
            if wrong:
                problems.append(f"{path}.{one.key}: {wrong}")
        found[name] = config.kind


def _config_of(stage: dict[str, Any]) -> StageConfig | None:
    """Return the settings of a stage without what was wrong, or None where its kind is unknown."""
    names = {name_of(kind): kind for kind in KINDS}
    kind = names.get(stage.get("kind", next(iter(names))))
    return None if kind is None else kind.Config.model_validate(stage)


def _nested(stages: Any) -> Iterator[tuple[str, str, str]]:
    """Yield stage, key and sentence where settings stand inside a key called like the kind, as they once did."""
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        kind = stage.get("kind") if isinstance(stage, dict) else None
        if isinstance(kind, str) and isinstance(inner := stage.get(kind), dict):
            keys = ", ".join([f"kind: {kind}", *(f"{key}: {show(value)}" for key, value in inner.items())])
            yield name, kind, f"stages.{name}.{kind}: its keys stand next to `kind` now: {{{keys}}}"


def _without_nested(raw: dict[str, Any], nested: list[tuple[str, str, str]]) -> dict[str, Any]:
    wrong = {(name, key) for name, key, _ in nested}
    if not wrong:
        return raw
    stages = {
        name: {key: value for key, value in stage.items() if (name, key) not in wrong}
        if isinstance(stage, dict)
        else stage
        for name, stage in raw["stages"].items()
    }
    return raw | {"stages": stages}


def _wrong_reference(one: Input, stage: str, names: Collection[str], found: dict[str, str | None]) -> str | None:
    """Say why `stage` cannot use an input; `found` has the kinds down to `stage` itself, `names` has all stages."""
    if one.stage == stage:
        return "a stage cannot use itself"
    wanted = [name_of(kind) for kind in KINDS if one.wants in kind.LEAVES]
    needed = " or ".join(wanted)
    if one.stage in found:
        kind = found[one.stage]
        return None if kind in (*wanted, None) else f"'{one.stage}' is a {kind} stage, and a {needed} stage is needed"
    if one.stage in names:
        return f"'{one.stage}' runs later; a stage can only use the stages above it"
    above = [name for name, kind in found.items() if kind in wanted]
    return f"no stage '{one.stage}'{nearest(one.stage, above) if above else f'; there is no {needed} stage above it'}"


def _check_augment(augment: dict[str, Any], path: str, problems: list[str]) -> None:
    """Check `backend`, `policy` and the form of views; which policies and transforms there are the pipeline knows."""
    for view, settings in augment.items():
        if view == "backend":
            if settings not in BACKENDS:
                problems.append(f"{path}.backend: {one_of(settings, BACKENDS)}")
        elif view == "policy":
            if settings != "auto":
                problems.append(
                    f"{path}.policy: must be auto, not {show(settings)}; a view's own is {path}.VIEW.policy"
                )
        elif not isinstance(settings, dict):
            problems.append(f"{path}.{view}: must be a mapping, not {show(settings)}")
        elif "policy" not in settings and "albumentations" not in settings:
            problems.append(f"{path}.{view}.policy: missing")
        elif not isinstance(settings.get("policy", "none"), str):
            problems.append(f"{path}.{view}.policy: must be text, not {show(settings['policy'])}")
