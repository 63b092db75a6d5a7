"""YAML files that come with the package: in an installed one as package data, in a checkout at the top."""

from __future__ import annotations

from pathlib import Path

from semisup.errors import SemisupError, nearest

__all__ = ["MODELINE", "SUFFIXES", "find_yaml", "modeline", "shipped_folder", "shipped_names"]

SUFFIXES = (".yaml", ".yml")

MODELINE = "# yaml-language-server: $schema="
"""What the first line of a shipped file tells an editor: where its schema lies, from there."""


def modeline() -> str:
    """Return the first line of a recipe that lies anywhere on this machine."""
    return f"{MODELINE}{(shipped_folder('recipes', 'recipes') / 'recipe.schema.json').as_posix()}"


def shipped_folder(package: str, checkout: str) -> Path:
    """Return the folder of shipped files.

    Args:
        package: its name inside an installed `semisup`, e.g. `recipes`.
        checkout: its path from the top of a checkout, e.g. `benchmarks/suites`.
    """
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
        SemisupError: no such file, a folder, or not a `.yaml`; with the nearest shipped name.
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
    raise SemisupError(f"{name}: no such {what}, neither a file nor a shipped one{nearest(name, shipped)}")
