"""What a command is about to write over: said before it does, refused where it belongs to a finished stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from semisup.records import refuse_stage_files

__all__ = ["note_replaced", "noting_replaced"]


def note_replaced(files: Iterable[Path]) -> None:
    """Say which of these files are there already and get new contents, before the first word is written.

    Raises:
        SemisupError: one is a file of a finished stage.
    """
    with noting_replaced(files):
        pass


@contextmanager
def noting_replaced(files: Iterable[Path]) -> Iterator[None]:
    """Say the same once they are replaced: what fails before that leaves them as they were.

    Raises:
        SemisupError: one is a file of a finished stage.
    """
    files = list(files)
    refuse_stage_files(files)
    there = [str(file) for file in files if file.is_file()]
    yield
    if there:
        typer.echo(f"note: replaced: {', '.join(there)}", err=True)
