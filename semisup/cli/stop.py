"""How a command ends before its end, and how it does without locks."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator

import typer

from semisup.errors import from_system
from semisup.files import NO_LOCK
from semisup.signals import GRACE, catching, last, told
from semisup.text import harmless

__all__ = ["GRACE_HELP", "LAUNCHED", "NO_LOCK_HELP", "go_without_locks", "saying_how_to_go_on"]

GRACE_HELP = "Seconds that a step may take to its end and checkpoint after SIGTERM, SIGHUP or Ctrl-C."
LAUNCHED = "SEMISUP_LAUNCHED"
"""Environment variable: set for the processes that `--processes` starts."""
NO_LOCK_HELP = "For file systems without locks; run one command at a time."


def go_without_locks(chosen: bool) -> None:
    """Let this command, and the workers that it starts, lock nothing."""
    if chosen:
        os.environ[NO_LOCK] = "1"


@contextlib.contextmanager
def saying_how_to_go_on(grace: float = GRACE, *, anew: bool = False) -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into exit 130, 143 and 129, a failing disk into exit 2, with what goes on.

    Args:
        grace: seconds that a step in progress may take before its checkpoint is given up.
        anew: nothing of what the command has done is kept, and it begins at the beginning.
    """
    again = f"{'start again' if anew else 'go on'} with: semisup {shlex.join(sys.argv[1:])}"
    with catching(grace):
        try:
            yield
        except KeyboardInterrupt:
            _say_stopped(again)
            raise typer.Exit(128 + last()) from None
        except ImportError:  # what is left of a library whose import was broken off
            if not told():
                raise
            _say_stopped(again)
            raise typer.Exit(128 + last()) from None
        except BrokenPipeError:  # as of `| head`: nobody reads on
            raise
        except OSError as error:  # a full disk, a folder that vanished
            say(f"error: {from_system(error)}; once that is mended, {again}")
            raise typer.Exit(2) from None


def _say_stopped(again: str) -> None:
    """Say so once: of torchrun's processes by the first, of our own command's by the command."""
    if os.environ.get("RANK", "0") == "0" and not ("RANK" in os.environ and LAUNCHED in os.environ):
        say(f"stopped; {again}")


def say(sentence: str) -> None:
    """Write to standard error, if anybody is left there: a terminal that hung up is not."""
    with contextlib.suppress(OSError):
        typer.echo(harmless(sentence), err=True)
