"""YAML files that come with the package: in an installed one as package data, in a checkout at the top."""

from __future__ import annotations

import difflib
from pathlib import Path

from semisup.errors import SemisupError, near, nearest
from semisup.text import command

__all__ = ["MODELINE", "SUFFIXES", "find_yaml", "modeline", "of_another_kind", "shipped_folder", "shipped_names"]

SUFFIXES = (".yaml", ".yml")
_FOLDERS = {"recipe": ("recipes", "recipes"), "suite": ("suites", "benchmarks/suites")}
"""Of each kind: its folder inside an installed `semisup`, and from the top of a checkout."""

MODELINE = "# yaml-language-server: $schema="
"""What the first line of a shipped file tells an editor: where its schema lies, from there."""


def modeline() -> str:
    """Return the first line of a recipe that lies anywhere on this machine."""
    return f"{MODELINE}{(shipped_folder('recipe') / 'recipe.schema.json').as_posix()}"


def shipped_folder(what: str) -> Path:
    """Return the folder of shipped files.

    Args:
        what: "recipe" or "suite".
    """
    package, checkout = _FOLDERS[what]
    top = Path(__file__).parents[1]
    installed = top / package
    return installed if installed.is_dir() else top.parent / checkout


def shipped_names(folder: Path) -> list[str]:
    """Return the names of its YAML files, sorted, without suffix, e.g. `digits/quickstart`."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_yaml(ref: str | Path, folder: Path, what: str) -> Path:
    """Return the file of a recipe or a suite, given by its path or by its shipped name.

    Args:
        ref: which.
        folder: of the shipped ones.
        what: "recipe" or "suite".

    Raises:
        SemisupError: no such file, a folder, or not a `.yaml`; with the nearest name, of the shipped ones or of a file
            that is there.
    """
    if not isinstance(ref, str | Path):
        raise SemisupError(f"{what}: must be a file, a shipped name or a mapping, not {type(ref).__name__}")
    name, path = str(ref), Path(ref)
    shipped = shipped_names(folder)
    if name in shipped:
        return folder / f"{name}.yaml"
    try:
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            return path
        if path.is_dir():
            raise SemisupError(f"{name}: is a folder; a {what} is one .yaml file{nearest(name, shipped)}")
        if path.exists():
            raise SemisupError(f"{name}: a {what} is a .yaml file{nearest(name, shipped)}")
    except OSError as error:
        raise SemisupError(f"{name[:100]}: cannot be read: {error.strerror}") from error
    if any(kind != what and name in shipped_names(shipped_folder(kind)) for kind in _FOLDERS):
        raise of_another_kind(name, what)
    none = f"{name}: no such {what}, neither a file nor a shipped one"
    if path.suffix.lower() not in SUFFIXES:
        raise SemisupError(f"{none}{nearest(name, shipped)}")
    looked = "" if path.is_absolute() else f" (looked for {path.absolute()})"
    raise SemisupError(f"{none}{looked}{_near_file(path) or near(name, shipped)}")


def _near_file(path: Path) -> str:
    """Return which YAML file next to where one was looked for is called nearly so, suffixes aside."""
    files = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    there = {file.stem.casefold(): file for file in files if file.suffix.lower() in SUFFIXES}
    close = difflib.get_close_matches(path.stem.casefold(), there, n=1, cutoff=0.5)
    return f"; did you mean '{there[close[0]]}'?" if close else ""


def of_another_kind(ref: str | Path, what: str) -> SemisupError:
    """Return what is wrong with a file or shipped name of the other kind, and the command that takes it.

    Args:
        ref: which.
        what: "recipe" or "suite", what was wanted.
    """
    found, verb = ("a suite of many runs", "bench") if what == "recipe" else ("a recipe of one run", "run")
    return SemisupError(f"{ref}: is {found}, not a {what}; start it with: {command('semisup', verb, ref)}")
