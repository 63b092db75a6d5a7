"""Imports go downwards: floors, no circle, and nothing heavy where answers must be quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import semisup

PACKAGE = Path(semisup.__file__).parent
FLOORS = [
    {"__main__"},
    {"cli"},
    {"bench", "estimator"},
    {"labeling", "pipeline"},
    {"config"},
    {"stages"},
    {"engine", "plugins"},
    {"data", "methods"},
    {"graph"},
    {"augment", "settings", "evaluate", "tracking", "models", "losses"},
    {"columns"},
    {"export_files", "files", "options", "records", "signals", "text"},
    {"errors", "_version"},
]
"""From the roof down; a part may import what stands on a floor below its own."""
FLOOR = {part: len(FLOORS) - i for i, parts in enumerate(FLOORS) for part in parts}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        words = path.relative_to(PACKAGE.parent).with_suffix("").parts
        named[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return named


def imports(name: str, tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Modules of the package that `name` imports anywhere, in functions too, by their dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            # `from semisup.stages import train` names the module semisup.stages.train, or a name in semisup.stages.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in known else str(node.module) for target in full]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            targets = [word.value for word in node.args if isinstance(word, ast.Constant)]
        else:
            continue
        yield from (target for target in targets if target.split(".")[0] == "semisup")


def graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports."""
    files = modules()
    known = set(files)
    return {name: set(imports(name, ast.parse(path.read_text()), known)) for name, path in files.items()}


def part(module: str) -> str:
    """Second word of a dotted name; of `semisup` itself, nothing."""
    return module.split(".")[1] if "." in module else ""


def test_every_part_has_a_floor() -> None:
    assert {part(name) for name in modules()} - {""} <= set(FLOOR)


def test_imports_go_downwards() -> None:
    upwards = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if part(name)
        and part(target) != part(name)
        # The package's own top re-exports what stands above; only its version and errors are anybody's.
        and (not part(target) or FLOOR[part(target)] >= FLOOR[part(name)])
    ]
    assert upwards == []


def test_no_module_imports_itself_in_a_circle() -> None:
    """Between modules, not only between packages; a package counts as its `__init__`."""
    edges = graph()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for target in edges.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in edges:
        if name != "semisup":  # imports what it re-exports lazily, from functions
            visit(name, ())


def test_this_test_sees_imports_inside_functions() -> None:
    source = (
        "def f():\n    from semisup.stages import train\n    import semisup.cli.app\n    import_module('semisup.x')\n"
    )
    known = {"semisup.stages", "semisup.stages.train"}
    assert list(imports("x", ast.parse(source), known)) == ["semisup.stages.train", "semisup.cli.app", "semisup.x"]


POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
"""Modules that Python has on Linux and macOS alone."""


def test_the_package_imports_where_there_is_no_posix() -> None:
    """As on Windows. A signal that not every system has is asked for by its name."""
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX & set(names), name
            assert not (isinstance(node, ast.Attribute) and node.attr in ("SIGHUP", "SIGKILL", "fork")), name


HEAVY = ("torch", "torchvision", "numpy", "sklearn", "scipy", "mlflow", "matplotlib", "albumentations", "PIL", "rich")
HEAVY += ("distributed", "jinja2")


def imported_by(statement: str) -> set[str]:
    """Which heavy libraries a fresh Python has imported after `statement`."""
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import semisup", set[str]()),
        ("import semisup.settings", set[str]()),
        ("import semisup.config", set[str]()),
        ("import semisup.cli.app", set[str]()),
        ("import semisup.bench", {"numpy"}),
        ("import semisup.data", {"numpy", "PIL"}),
        ("from semisup.tracking import EventLog", {"numpy"}),
        ("import semisup.pipeline", {"torch", "numpy", "PIL", "rich"}),
    ],
)
def test_quick_parts_import_nothing_heavy(statement: str, allowed: set[str]) -> None:
    assert imported_by(statement) <= allowed


def test_the_top_of_the_package_offers_its_names() -> None:
    for name in semisup.__all__:
        assert getattr(semisup, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
        _ = semisup.nosuch


def test_numbers_become_float64_on_the_host_alone() -> None:
    """A Mac's GPU, which `device: auto` takes, has no such numbers."""
    wrong = [
        f"{name}: {line.strip()}"
        for name, path in modules().items()
        for line in path.read_text().splitlines()
        if ".double().cpu()" in line
    ]
    assert not wrong
