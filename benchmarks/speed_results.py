"""How a speed benchmark shows what it found, and where that is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from semisup.bench.execution.worker import machine
from semisup.text import markdown_table

__all__ = ["RESULTS", "circumstances", "committed", "show", "write", "write_cases"]

RESULTS = Path(__file__).parent / "results"


def circumstances() -> str:
    """Machine, versions and how busy it has been: a ratio of a busy machine is to be taken with salt."""
    return f"{machine()}; load {os.getloadavg()[0]:.1f}"


def show(header: Sequence[str], lines: Sequence[Sequence[str]], note: str) -> None:
    """Print a table, and a note below it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, title in enumerate(header):
        table.add_column(title, justify="right" if place else "left")
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print(note, highlight=False, markup=False)


def write(
    name: str,
    record: dict[str, Any],
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    note: str,
    without: Collection[str] = (),
) -> None:
    """Keep a record as `results/NAME.json` and its table, without some of the columns, as `results/NAME.md`."""
    header, *lines = ([line[i] for i, title in enumerate(header) if title not in without] for line in (header, *lines))
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(f"{markdown_table(header, lines)}\n\n{note}\n", encoding="utf-8")


def write_cases(
    name: str,
    cases: Mapping[str, dict[str, Any]],
    line_of: Callable[[str, dict[str, Any]], list[str]],
    header: Sequence[str],
    note: str,
    without: Collection[str] = (),
) -> None:
    """Keep the record of some cases with those that are committed and were not measured now.

    Args:
        name: as for `write`.
        cases: by name, what was measured now.
        line_of: the line of a case in the table, of its name and record.
        header: titles of the columns.
        note: below the table.
        without: columns to leave out.
    """
    merged = {**committed(name).get("cases", {}), **cases}
    lines = [line_of(case, found) for case, found in merged.items()]
    write(name, {"machine": note, "cases": merged}, header, lines, note, without)


def committed(name: str) -> dict[str, Any]:
    """Return the record that `write` left; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
