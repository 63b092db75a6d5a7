"""What is shipped: `semisup methods` and `semisup recipes`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from semisup.errors import SemisupError, nearest
from semisup.settings.shipped import MODELINE, modeline
from semisup.text import command

__all__ = ["method_names", "methods", "recipe_names", "recipes", "schema", "suite_names"]

_WIDTH = 110  # of a line that sums up


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes that begin so, for the shell's completion."""
    from semisup.config import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def suite_names(incomplete: str) -> list[str]:
    """Shipped suites that begin so, for the shell's completion."""
    from semisup.bench import shipped_suites

    return [name for name in shipped_suites() if name.startswith(incomplete)]


def method_names(incomplete: str) -> list[str]:
    """Methods that begin so, for the shell's completion."""
    from semisup.methods import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this one in full.", autocompletion=method_names)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List every method with its family, one line and its citation; or one method with its options."""
    from semisup.methods import METHODS
    from semisup.plugins import load_plugins

    load_plugins()
    if name is not None:
        if name not in METHODS:
            raise SemisupError(f"methods: unknown method '{name}'{nearest(name, METHODS)}")
        from semisup.pipeline.describe import describe_method

        text = describe_method(name)
        typer.echo(json.dumps(text.to_json(), indent=2) if as_json else text.to_text())
        return
    rows: list[dict[str, Any]] = [
        {"name": name, "family": cls.family, "summary": cls.summary, "citation": cls.citation}
        for name, cls in METHODS.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(map(len, METHODS))
    for row in rows:
        typer.echo(f"{row['name']:<{width}} {row['family']:<16} {row['summary']} ({row['citation']})")


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one.", autocompletion=recipe_names)] = None,
    copy: Annotated[Path | None, typer.Option(help="Write it to this file instead.")] = None,
) -> None:
    """List the shipped recipes with a line each; or print one, or copy it to a file to change it there."""
    from semisup.config import find_recipe, require_recipe_name, shipped_recipes

    if name is None:
        if copy is not None:
            raise SemisupError("--copy: name the recipe, e.g. semisup recipes digits/quickstart --copy my.yaml")
        width = max(map(len, shipped_recipes()))
        for shipped in shipped_recipes():
            typer.echo(f"{shipped:<{width}}  {_first_sentence(find_recipe(shipped).read_text(encoding='utf-8'))}")
        return
    if name not in shipped_recipes():
        raise SemisupError(f"recipes: no shipped recipe '{name}'{nearest(name, shipped_recipes())}")
    if copy is not None:
        require_recipe_name(copy, "--copy")
    text = find_recipe(name).read_text(encoding="utf-8")
    if copy is None:
        typer.echo(text, nl=False)
        return
    lines = [modeline() if line.startswith(MODELINE) else line for line in text.splitlines()]
    try:
        with copy.open("x", encoding="utf-8") as file:  # what is there already is a person's own
            file.write("\n".join([*lines, ""]))
    except OSError as error:
        raise SemisupError(f"--copy {copy}: cannot be written ({error.strerror})") from error
    typer.echo(f"{copy}: change it, then: {command('semisup', 'run', copy)}")


def _first_sentence(recipe: str) -> str:
    """Return the first sentence of the comment that a recipe begins with; of a long one, what is before its colon."""
    lines = [line for line in recipe.splitlines() if not line.startswith(MODELINE)]
    end = next((i for i, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    words = re.split(r"(?<!et al)\. ", " ".join(line.removeprefix("# ") for line in lines[:end]))[0]
    if len(words) > _WIDTH:
        short = re.split("; |: ", words)[0]
        words = short if len(short) > _WIDTH // 4 else words
    return words.rstrip(".:") if len(words) <= _WIDTH else words[: _WIDTH - 3].rsplit(" ", 1)[0] + " ..."


def schema(
    suite: Annotated[bool, typer.Option("--suite", help="Of suites of `semisup bench` instead.")] = False,
) -> None:
    """Print the JSON Schema of recipes, options included: semisup schema > recipe.schema.json, for an editor."""
    if suite:
        from semisup.bench.suites.suite import suite_schema

        found = suite_schema()
    else:
        from semisup.pipeline.schema import recipe_schema

        found = recipe_schema()
    typer.echo(json.dumps(found, indent=2))
