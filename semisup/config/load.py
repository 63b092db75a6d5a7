"""Find a recipe, lay the command line's settings over it, and return it typed and checked."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semisup.config.check import check_recipe
from semisup.errors import SemisupError, nearest, raise_all
from semisup.options import show
from semisup.settings.interpolate import forbidden, resolve
from semisup.settings.read import as_override, dump, read_mapping, read_value
from semisup.settings.schema import Recipe
from semisup.settings.shipped import SUFFIXES, find_yaml, of_another_kind, shipped_folder, shipped_names
from semisup.stages.kinds import CheckedRecipe

__all__ = [
    "Reading",
    "find_recipe",
    "load_recipe",
    "overlay",
    "parse_recipe",
    "read_overrides",
    "read_recipe",
    "replaced",
    "require_recipe_name",
    "shipped_recipes",
    "to_yaml",
]


def load_recipe(ref: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file or from the shipped ones.

    Args:
        ref: a path to a `.yaml` file, or a shipped name such as `digits/quickstart`.
        overrides: `key=value` texts that win over the file, e.g. `stages.pretrain.epochs=10`. The value is YAML.
            Mappings are merged and lists replaced; `steps` replaces the file's `epochs` and the reverse.

    Raises:
        SemisupError: one message with every problem of the file and the overrides.
    """
    return read_recipe(ref, overrides).recipe()


def parse_recipe(mapping: Mapping[str, Any], overrides: Sequence[str] = (), subject: str = "recipe") -> Recipe:
    """Turn what a YAML file says into a checked recipe.

    Args:
        mapping: plain containers with the keys of the YAML (`init` has `from`); not modified.
        overrides: see `load_recipe`.
        subject: what the messages start with, e.g. the file's path.

    Raises:
        SemisupError: one message with every problem.
    """
    return Reading(mapping, overrides, subject).recipe()


class Reading:
    """A recipe that was read, whatever is wrong with it: so that more can be checked before all is said at once.

    Attributes:
        subject: what messages start with.
        raw: the recipe as plain containers, every reference followed and every short form spelled out.
        problems: one sentence for each mistake that its models find.

    Args:
        mapping: see `parse_recipe`.
        overrides: likewise.
        subject: likewise.

    Raises:
        SemisupError: it cannot be read so far that its keys could be looked at.
    """

    def __init__(self, mapping: Mapping[str, Any], overrides: Sequence[str] = (), subject: str = "recipe") -> None:
        if not isinstance(mapping, Mapping):
            raise SemisupError(f"{subject}: a recipe is a mapping of keys to values, not {show(mapping)}")
        if isinstance(overrides, str):
            raise SemisupError(f"overrides: must be a list of key=value words, not the text {show(overrides)}")
        if not isinstance(overrides, Sequence) or not all(isinstance(word, str) for word in overrides):
            raise SemisupError(f"overrides: must be a list of key=value words, not {show(overrides)}")
        given = " ".join(overrides)
        shown = given if len(given) <= 200 else given[:197] + "..."
        self.subject = f"{subject} with {shown}" if overrides else subject
        self.problems: list[str] = []
        command = read_overrides(overrides, self.problems)
        file = _copy(mapping)
        refused = list(forbidden(file))
        raise_all([*self.problems, *refused] if refused else [], self.subject)
        merged = _merge(_spell_out(file), command, self.problems)
        broken: list[str] = []
        self.raw = _spell_out(resolve(merged, _defaults(), broken), after=True)
        # After a reference that leads nowhere, types and ranges cannot be checked.
        raise_all([*self.problems, *broken] if broken else [], self.subject)
        self.problems += [_for_command_line(problem, overrides) for problem in check_recipe(self.raw)]

    def recipe(self) -> Recipe:
        """Return the recipe.

        Raises:
            SemisupError: there are problems; all of them.
        """
        raise_all(self.problems, self.subject)
        return CheckedRecipe.model_validate(self.raw)


def read_recipe(ref: str | Path, overrides: Sequence[str] = ()) -> Reading:
    """Read a recipe from a file or from the shipped ones, without refusing what can be read; see `load_recipe`."""
    path = find_recipe(ref)
    mapping = read_mapping(path)
    if "entries" in mapping and "stages" not in mapping:
        raise of_another_kind(path, "recipe")
    return Reading(mapping, overrides, str(path))


def find_recipe(ref: str | Path) -> Path:
    """Return the file of a recipe, given by its path or by its shipped name.

    Raises:
        SemisupError: no such file, a folder, or not a `.yaml`; with the nearest shipped name.
    """
    return find_yaml(ref, _shipped_folder(), "recipe")


def require_recipe_name(path: Path, option: str) -> None:
    """Refuse to write a recipe to a file that `find_recipe` would not take for one.

    Args:
        path: the file.
        option: of the command line, whose value it is.

    Raises:
        SemisupError: another suffix than a recipe's.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SemisupError(f"{option} {path}: must end in {' or '.join(SUFFIXES)}, as recipes do")


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package, sorted, e.g. `digits/quickstart`."""
    return shipped_names(_shipped_folder())


def to_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default spelled out; loading it again gives an equal recipe."""
    return dump(recipe.model_dump(by_alias=True))


def _shipped_folder() -> Path:
    return shipped_folder("recipe")


def _copy(value: Any) -> Any:
    """Copy plain containers; tuples and arrays become lists, numbers of numpy and torch plain ones, and paths text."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def read_overrides(overrides: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """Return all `key=value` texts as one nested mapping, the later ones over the earlier ones.

    Args:
        overrides: see `load_recipe`.
        problems: gets one sentence per text that cannot be read.
    """
    command: dict[str, Any] = {}
    for override in overrides:
        match = re.fullmatch(r"([\w-]+(?:\.[\w-]+)*)=(.*)", override, flags=re.DOTALL)
        if match is None:
            problems.append(f"{show(override)}: an override is written key=value, for example data.labels=10%")
            continue
        value, wrong = read_value(match[2])
        problems += [f"{match[1]}: {problem}" for problem in wrong]
        if wrong:
            continue
        for key in reversed(match[1].split(".")):
            value = {key: value}
        command = overlay(command, _spell_out(value), "", problems)
    return command


def _spell_out(raw: Any, *, after: bool = False) -> dict[str, Any]:
    """Write the short forms in full, so that an override can reach into them: `init: pretrain`, `freeze: true`, ...

    Args:
        raw: the recipe, or what the command line says of it.
        after: both have been put together.
    """
    stages = raw.get("stages")
    for stage in stages.values() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and isinstance(stage.get("init"), str):
            stage["init"] = {"from": stage["init"]}
        if isinstance(stage, dict) and isinstance(stage.get("teacher"), str):
            stage["teacher"] = [stage["teacher"]]
        for key in ("freeze", "lora"):
            if isinstance(stage, dict) and isinstance(stage.get(key), bool):
                stage[key] = {} if stage[key] else None
        if isinstance(stage, dict) and stage.get("augment") == "auto":
            stage["augment"] = {"policy": "auto"}
        augment = stage.get("augment") if isinstance(stage, dict) else None
        if after and isinstance(augment, dict) and augment.get("policy", "") is None:  # an override took `auto` away
            del augment["policy"]
    return dict(raw)


def overlay(below: dict[str, Any], over: dict[str, Any], path: str, problems: list[str]) -> dict[str, Any]:
    """Merge two nested mappings; everything but mappings is replaced, and keys cannot be set inside a scalar.

    A method, network, optimizer or policy replaces one of another name as a whole: the options of the one before are
    not its own, but see `replaced`.
    """
    merged = dict(below)
    for key, value in over.items():
        where, old = f"{path}.{key}" if path else str(key), merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and not _another(old, value):
            merged[key] = overlay(old, value, where, problems)
        elif isinstance(value, dict) and isinstance(old, dict):
            merged[key] = replaced(old, value)
        elif isinstance(value, dict) and old is not None:
            problems.append(f"{where}: is {show(old)}, not a mapping, so nothing can be set inside it")
        else:
            merged[key] = value
    return merged


def replaced(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands in the place of something of another name.

    A network of another library (`timm/...`) keeps the size of its images: its own may be 518 px.
    """
    foreign = all("/" in str(one.get("name")) for one in (old, new))
    return {**({"resize": old["resize"]} if foreign and "resize" in old else {}), **new}


def _another(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Tell whether two mappings name different things."""
    return any(key in old and key in new and old[key] != new[key] for key in ("name", "policy"))


def _for_command_line(problem: str, overrides: Sequence[str]) -> str:
    """Show how text that looks like a number is quoted where a shell takes the outer quotes away."""
    key, quoted = problem.split(": ")[0], "; quote it"
    given = [override.partition("=")[2] for override in overrides if override.startswith(f"{key}=")]
    if not given or not problem.endswith(quoted):
        return problem
    return f"{problem}: {shlex.quote(as_override(key, given[-1].strip()))}"


def _merge(file: dict[str, Any], command: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Lay the command line over the file; it may change stages, not add any."""
    stages, changes = file.get("stages"), command.get("stages")
    if isinstance(stages, dict) and isinstance(changes, dict):
        for name in list(changes):
            if name not in stages:
                problems.append(f"stages.{name}: the recipe has no such stage{nearest(str(name), map(str, stages))}")
                del changes[name]
                continue
            length = {"steps", "epochs"} & set(changes[name]) if isinstance(changes[name], dict) else set()
            if isinstance(stages[name], dict) and length:
                stages[name] = {key: value for key, value in stages[name].items() if key not in ("steps", "epochs")}
    return overlay(file, command, "", problems)


def _defaults() -> dict[str, Any]:
    """Return what `${seed}` and the like find where the recipe is silent."""
    return Recipe(name="x").model_dump(by_alias=True, exclude={"name", "model", "stages"})
