"""A table of one kind of row, written as it comes: CSV, JSON lines or Parquet, by the file's name."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semisup.errors import SemisupError, near
from semisup.text import csv_text, printable

__all__ = ["Columns", "Write", "check_table_name", "open_table"]

Columns = Mapping[str, type[str] | type[float]]
"""Name to type, in order."""
Write = Callable[[Sequence[Mapping[str, Any]]], None]
"""Gets some more rows; what a row lacks is empty."""
SUFFIXES = (".csv", ".jsonl", ".parquet")


def check_table_name(out: Path | None) -> None:
    """Refuse a file name that says no kind of table.

    Raises:
        SemisupError: another suffix.
    """
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise SemisupError(f"--out {out}: must end in {', '.join(SUFFIXES)}{near(out.suffix, SUFFIXES)}")


@contextmanager
def open_table(out: Path | None, columns: Columns) -> Iterator[Write]:
    r"""Open a table for writing.

    Names of files that are not UTF-8 keep their bytes in a CSV; elsewhere those are written as `\udce9`. A terminal is
    shown no sign that it would obey, as `ls` does; other programs need names as they are.

    Args:
        out: the file; None: a CSV to standard output.
        columns: of the rows.

    Raises:
        SemisupError: the file cannot be written.
    """
    if out is None and sys.stdout is None:
        raise SemisupError("standard output is closed; name a file with --out")
    try:
        if out is None:
            yield _csv_rows(sys.stdout, columns, printable if sys.stdout.isatty() else str)
            sys.stdout.flush()
        elif out.suffix.lower() == ".parquet":
            with _parquet(out, columns) as write:
                yield write
        else:
            with out.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                yield (_json_rows if out.suffix.lower() == ".jsonl" else _csv_rows)(file, columns)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # as of `| head`: nobody reads on
            raise
        where = "standard output" if out is None else f"--out {out}"
        raise SemisupError(f"{where}: cannot be written ({error.strerror or error})") from error


def _csv_rows(file: Any, columns: Columns, spelled: Callable[[str], str] = str) -> Write:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        writer.writerows([_cell(row.get(name, ""), spelled) for name in columns] for row in rows)
        file.flush()

    return write


def _cell(value: Any, spelled: Callable[[str], str]) -> Any:
    """Return what a CSV has of a value; a file or class called `=1+1` is no formula."""
    if isinstance(value, str):
        return csv_text(spelled(value))
    return f"{value:.6g}" if isinstance(value, float) else value


def _json_rows(file: Any, columns: Columns) -> Write:
    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            file.write(json.dumps({name: row.get(name) for name in columns}) + "\n")
        file.flush()

    return write


@contextmanager
def _parquet(out: Path, columns: Columns) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.string() if kind is str else pa.float32() for name, kind in columns.items()}
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(out, schema) as writer:

        def write(rows: Sequence[Mapping[str, Any]]) -> None:
            cells = {name: [row.get(name) for row in rows] for name in columns}
            for name, values in cells.items():
                if columns[name] is str:
                    cells[name] = [None if value is None else printable(value) for value in values]
            writer.write_table(pa.table(cells, schema=schema))

        yield write
