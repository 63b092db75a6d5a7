"""YAML files that come with the package: in an installed one as package data, in a checkout at the top."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODELINE", "modeline", "shipped_folder", "shipped_names"]

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
