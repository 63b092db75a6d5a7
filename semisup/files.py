"""Files that are at all times either the old one or the whole new one, and folders that one process works in."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from semisup.errors import SemisupError, raise_all

__all__ = [
    "LOCK",
    "NO_LOCK",
    "at_home",
    "folder_problems",
    "folders_in_the_way",
    "locked",
    "locked_file",
    "make_folder",
    "parent_of",
    "refuse_unwritable",
    "remove_torn",
    "replacing",
    "temporary_for",
    "whole",
    "write_atomically",
]

LOCK = "lock"
"""The file of a folder that `locked` locks; what it holds does not matter."""
NO_LOCK = "SEMISUP_NO_LOCK"
"""Environment variable; set to 1, nothing is locked, which some network file systems need."""

_TORN = re.compile(r"\..+\.\d+\.tmp")


def at_home(text: str, key: str) -> Path:
    """Return a path as a recipe has it, `~` and `~/...` below the person's home; `~anna` is a file of that name.

    Args:
        text: the path.
        key: whose value it is, for the message.

    Raises:
        SemisupError: nothing says where the home is, as in a container for a user that its system does not know.
    """
    if text != "~" and not text.startswith("~/"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise SemisupError(
            f"{key}: {text} cannot be found, as HOME is not set and this user has no home; name a whole path"
        ) from None


def parent_of(folder: Path) -> Path:
    """Return the folder that a folder lies in, also of `.` and `..`, which Python calls parents of themselves."""
    return (Path(os.path.normpath(folder.absolute())) if folder.name in ("", "..") else folder).parent


def whole(path: Path) -> Path:
    """Return a path from the root on, without links; of links that lead round in a circle it is left as it is.

    `Path.resolve` raises RuntimeError for these before Python 3.13. Whoever opens such a path hears of it.
    """
    return Path(os.path.realpath(path))


def temporary_for(path: Path) -> Path:
    """Return the hidden name next to `path` under which this process makes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving, it takes the place of `path`, safe from a kill and a power cut.

    Raises:
        SemisupError: the disk is full, or the folder is not writable; the old file is as it was.
    """
    temporary = temporary_for(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise SemisupError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # gone already, unless something went wrong
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Let a rename in the folder outlive a power cut; Windows opens no folders and needs none of it."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_atomically(path: Path, payload: bytes | memoryview) -> None:
    """Write `payload` so that a kill or a power cut at any moment leaves the old file or the new one, whole.

    Raises:
        SemisupError: the disk is full, or the folder is not writable; the old file is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(payload)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        SemisupError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise SemisupError(f"{folder}: cannot be made a folder ({why})") from error


def folder_problems(folders: Iterable[Path]) -> list[str]:
    """Return why one of these folders could not be written to, found out without making any; nothing if all can."""
    problems = []
    for folder in folders:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            problems.append(f"{folder} cannot be a folder, {existing} is a file")
        elif not os.access(existing, os.W_OK | os.X_OK):
            problems.append(f"{folder} cannot be written to")
    return problems[:1]  # one cause has the same effect on all of them


def folders_in_the_way(files: Iterable[Path]) -> list[str]:
    """Return one sentence for each file that cannot be written where it is wanted, because a folder is called so."""
    return [f"{file} is a folder, where a file is to be written; move it away" for file in files if file.is_dir()]


def refuse_unwritable(file: Path, key: str = "") -> None:
    """Refuse a file that could not be written, before the work for it is done.

    Args:
        file: that `replacing` would make.
        key: whose value it is, for the message.

    Raises:
        SemisupError: it is a folder, or its own folder is not there or cannot be written to.
    """
    problems = folders_in_the_way([file]) or folder_problems([file.parent])
    if not problems and not file.parent.is_dir():
        problems = [f"{file} cannot be written, there is no folder {file.parent}; make it first"]
    raise_all(problems, key)


def remove_torn(folder: Path) -> None:
    """Remove what writes of killed processes have left in a folder; only for who has it to itself."""
    for path in folder.glob(".*.tmp"):
        if _TORN.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(home: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep two processes from making the same thing: the second waits, then finds it finished.

    The kernel drops the lock with the process, so that a kill leaves nothing to clean up but a half-written temporary
    file, which goes when the next process has the lock.

    Args:
        home: the folder of what is made, itself made if missing.
        on_wait: called before waiting for another process.

    Raises:
        SemisupError: the folder cannot be made or written to, or its file system has no locks.
    """
    make_folder(home)
    with locked_file(home / LOCK, on_wait):
        remove_torn(home)
        yield


@contextlib.contextmanager
def locked_file(path: Path, on_wait: Callable[[], None] = lambda: None, *, wait: bool = True) -> Iterator[bool]:
    """Lock one file, which is made if missing, and give whether that worked.

    Args:
        path: the file; nothing is written to it.
        on_wait: called before waiting for another process.
        wait: False: give False at once where another process has it.

    Raises:
        SemisupError: the file cannot be made, or its file system has no locks.
    """
    if os.environ.get(NO_LOCK) == "1":
        yield True
        return
    lock = FileLock(path, fallback_to_soft=False)
    got = True
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            on_wait()
            if wait:
                lock.acquire()
            got = wait
    except OSError as error:
        raise SemisupError(
            f"{path}: cannot be locked ({error.strerror}); name a folder that can be written to, on a file system with "
            f"locks, or go without by --no-lock or {NO_LOCK}=1, with one command at a time"
        ) from error
    try:
        yield got
    finally:
        lock.release()
