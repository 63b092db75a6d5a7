"""How a command ends before its end."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator

import typer

__all__ = ["saying_how_to_go_on"]


@contextlib.contextmanager
def saying_how_to_go_on() -> Iterator[None]:
    """Turn Ctrl-C into exit 130 and a failing disk into exit 1, with the command that goes on."""
    again = f"go on with: semisup {shlex.join(sys.argv[1:])}"
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; {again}", err=True)
        raise typer.Exit(130) from None
    except OSError as error:  # a full disk, a folder that vanished
        typer.echo(f"error: {error}; once that is mended, {again}", err=True)
        raise typer.Exit(1) from None
