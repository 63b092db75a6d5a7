"""How a command ends before its end, and how it does without locks."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator

import typer

from semisup.files import NO_LOCK

__all__ = ["NO_LOCK_HELP", "go_without_locks", "saying_how_to_go_on"]

NO_LOCK_HELP = "For file systems without locks; run one command at a time."


def go_without_locks(chosen: bool) -> None:
    """Let this command, and the workers that it starts, lock nothing."""
    if chosen:
        os.environ[NO_LOCK] = "1"


@contextlib.contextmanager
def saying_how_to_go_on() -> Iterator[None]:
    """Turn Ctrl-C into exit 130 and a failing disk into exit 2, with the command that goes on."""
    again = f"go on with: semisup {shlex.join(sys.argv[1:])}"
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; {again}", err=True)
        raise typer.Exit(130) from None
    except OSError as error:  # a full disk, a folder that vanished
        typer.echo(f"error: {error}; once that is mended, {again}", err=True)
        raise typer.Exit(2) from None
