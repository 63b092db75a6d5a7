"""What a command writes over: said, and refused where it is a folder or belongs to a finished stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from semisup.errors import raise_all
from semisup.files import folders_in_the_way
from semisup.records import refuse_stage_files

__all__ = ["noting_replaced"]


@contextmanager
def noting_replaced(files: Iterable[Path]) -> Iterator[None]:
    """Say which of these files were there already and got new contents, once they have them; not where something fails.

    Raises:
        SemisupError: one is a file of a finished stage, or a folder.
    """
    files = list(files)
    raise_all(folders_in_the_way(files))
    refuse_stage_files(files)
    there = [str(file) for file in files if file.is_file()]
    yield
    if there:
        typer.echo(f"note: replaced: {', '.join(there)}", err=True)
