"""What a user can get wrong, said once and in full."""

from __future__ import annotations

import difflib
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "UNREADABLE",
    "SaidElsewhereError",
    "SemisupError",
    "collecting",
    "first_line",
    "from_system",
    "near",
    "nearest",
    "not_there",
    "raise_all",
    "refuse_special",
]

UNREADABLE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
    *(SyntaxError, RuntimeError, MemoryError, SystemError),
    *(struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError, tokenize.TokenError),
)
"""What the readers of numpy, Pillow and torch raise on damaged bytes.

They parse and trust, and fail wherever the damage shows. A `SemisupError` is among them: only the other library's call
goes into such a `try`."""


LISTED = 200
"""Names that a message lists; timm has 1,300."""


class SemisupError(ValueError):
    """A mistake the user can mend: the message names the key or file, the rule and the value.

    Attributes:
        problems: one sentence for each mistake, where the message lists several; else the message.
        exit_code: of a command that it ends.
    """

    exit_code = 2

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class SaidElsewhereError(SemisupError):
    """A mistake that another process of the same run tells the person."""


def first_line(error: BaseException) -> str:
    """Return what another library's error says, without the lines after the first; its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def from_system(error: OSError) -> str:
    """Return what the operating system says, with the file that it is about: `a.png: Permission denied`."""
    reason = error.strerror or first_line(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest valid name, else the list of valid names, or some of very many.

    Args:
        name: what the user wrote.
        valid: every name that would have been accepted.
    """
    names = sorted(valid)
    folded = {valid_name.casefold(): valid_name for valid_name in names}
    close = [folded[found] for found in difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)]
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(names) > LISTED:
        return f"; valid: {', '.join(names[:8])} and {len(names) - 8:,} more"
    return f"; valid: {', '.join(names)}" if names else ""


def near(name: str, valid: Iterable[str]) -> str:
    """Return `nearest`, but nothing where no valid name is close."""
    found = nearest(name, valid)
    return found if "did you mean" in found else ""


def not_there(path: Path) -> str:
    """Say that a file or folder does not exist, where it was looked for, and which is called nearly so."""
    absolute = "" if path.is_absolute() else f" (that is, {path.absolute()}; paths begin at the current folder)"
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{path} does not exist{absolute}{near(path.name, names)}"


def refuse_special(path: Path, subject: str = "") -> None:
    """Refuse what is there and no file, before it is read: a pipe or a device may never end.

    Args:
        path: what is to be read.
        subject: what the message begins with; "": the path.

    Raises:
        SemisupError: it is a folder, a pipe, a socket or a device.
    """
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe or a device"
        raise SemisupError(f"{subject or f'{path}:'} cannot be read ({found}, not a file)")


def raise_all(problems: Sequence[str], subject: str = "") -> None:
    """Raise one `SemisupError` that lists every problem; return quietly when there is none.

    Args:
        problems: one sentence each.
        subject: what was being checked, e.g. the recipe's path; "": the sentences say so themselves.
    """
    if not problems:
        return
    sentences = [f"{subject}: {problem}" if subject else problem for problem in problems]
    if len(problems) == 1 or not subject:
        raise SemisupError("\n".join(sentences), sentences)
    lines = "\n".join(f"  - {problem}" for problem in problems)
    raise SemisupError(f"{subject}: {len(problems)} problems\n{lines}", sentences)


@contextmanager
def collecting(problems: list[str], at: str = "") -> Iterator[None]:
    """Go on after a `SemisupError` inside; `problems` gets its sentences, each after `at`, once."""
    try:
        yield
    except SemisupError as error:
        problems += [sentence for each in error.problems if (sentence := f"{at}{each}") not in problems]
