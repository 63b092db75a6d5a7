"""A name means one thing in the whole benchmark."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import semisup.bench

ROOM = Path(semisup.bench.__file__).parent


def test_no_public_name_stands_in_two_modules() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOM.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_"):
                    places[name].append(path.stem)
    assert len(places) > 100
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_no_two_modules_have_one_name() -> None:
    stems = [path.stem for path in ROOM.rglob("*.py") if path.stem != "__init__"]
    assert len(set(stems)) == len(stems)
