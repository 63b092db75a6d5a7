"""Files that are at all times either the old one or the whole new one, and folders that one process works in."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from semisup.errors import SemisupError

__all__ = ["LOCK", "locked", "replacing", "write_atomically"]

LOCK = "lock"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving, it takes the place of `path`, safe from a kill and a power cut.

    Raises:
        SemisupError: the disk is full, or the folder is not writable; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        raise SemisupError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):  # gone already, unless something went wrong
            temporary.unlink()


def write_atomically(path: Path, payload: bytes | memoryview) -> None:
    """Write `payload` so that a kill or a power cut at any moment leaves the old file or the new one, whole.

    Raises:
        SemisupError: the disk is full, or the folder is not writable; the old file is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(payload)


@contextlib.contextmanager
def locked(home: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep two processes from making the same thing: the second waits, then finds it finished.

    The kernel drops the lock with the process, so that a kill leaves nothing to clean up.

    Args:
        home: the folder of what is made, itself made if missing.
        on_wait: called before waiting for another process.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
