"""What the plan of the code wants, measured: lengths of functions, the README, the checkers, the files to touch.

    python benchmarks/structure.py

Exits 1 where a bound is broken. `tests/benchmarks/test_structure.py` runs the same.
"""

from __future__ import annotations

import ast
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_BODY = 60
"""Lines of a function without its signature, decorators and docstring."""
LONGEST_README = 10_000
"""Bytes."""


@dataclass(frozen=True)
class Body:
    """The body of one function."""

    where: str
    """File and line."""
    name: str
    lines: int


def bodies(folder: Path) -> Iterator[Body]:
    """Yield every function below a folder, those inside others too."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Body(f"{path.relative_to(folder.parent)}:{node.lineno}", node.name, body_lines(node))


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines from the first statement that is no docstring to the last."""
    statements = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not statements:
        return 0
    return int(statements[-1].end_lineno or 0) - statements[0].lineno + 1


def percentile(values: list[int], part: float) -> int:
    """Return the smallest value that at least `part` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def too_long(folder: Path) -> list[Body]:
    """Return the functions whose bodies have more lines than `LONGEST_BODY`, longest first."""
    return sorted((b for b in bodies(folder) if b.lines > LONGEST_BODY), key=lambda b: -b.lines)


def main() -> int:
    """Print the figures; 1 where a bound is broken."""
    lengths = [body.lines for body in bodies(ROOT / "semisup")]
    offenders = too_long(ROOT / "semisup")
    readme = (ROOT / "README.md").stat().st_size
    docs = len(list((ROOT / "docs").rglob("*.md")))
    median, p95 = statistics.median(lengths), percentile(lengths, 0.95)
    print(f"functions: {len(lengths)}; body median {median:.0f}, p95 {p95} lines")
    print(f"bodies over {LONGEST_BODY} lines: {len(offenders)} ({100 * len(offenders) / len(lengths):.1f}%), wanted 0")
    for body in offenders:
        print(f"  {body.where} {body.name}: {body.lines}")
    print(f"README: {readme / 1000:.0f} kB, wanted below {LONGEST_README / 1000:.0f}; docs: {docs} pages")
    return int(bool(offenders))


if __name__ == "__main__":
    sys.exit(main())
