"""The progress of decoding, shown to a person."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from semisup.data.store import Watch

if TYPE_CHECKING:  # a tenth of a second, which most uses of the package do without
    from rich.console import Console

__all__ = ["bar", "watching"]

PLAIN_SECONDS = 5.0
"""Least time between lines where there is no terminal."""


def watching(console: Console, *, announce: bool = True) -> Watch:
    """Return a watch that shows a bar on a terminal, and elsewhere lines.

    Args:
        console: where to.
        announce: without a terminal, say what begins and ends; False: only what takes more than a few seconds.
    """
    return lambda what, total: bar(console, what, total, announce=announce)


@contextmanager
def bar(console: Console, what: str, total: int, *, announce: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` are done, as the returned function is told."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(escape(what), total=total)
            yield lambda done: progress.update(task, completed=done)
        return
    printed = time.monotonic()

    def line(done: int) -> None:
        nonlocal printed
        if time.monotonic() - printed >= PLAIN_SECONDS or (announce and done == total):
            printed = time.monotonic()
            console.print(f"{what}: {done:,} of {total:,}", highlight=False, markup=False, emoji=False, soft_wrap=True)

    if announce:
        console.print(f"{what}: {total:,} files", highlight=False, markup=False, emoji=False, soft_wrap=True)
    yield line
