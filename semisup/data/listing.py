"""The files of a person's own images, with their classes and parts: from folders, or from a CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from semisup.errors import SemisupError, nearest, raise_all

__all__ = ["PARTS", "Entry", "Listing", "list_csv", "list_folders", "printable"]

PARTS = ("train", "val", "test")
"""In the order in which a store holds them."""
_FOLDERS = ("labeled", "unlabeled", "val", "test")
_IGNORED = ("thumbs.db", "desktop.ini")  # beside every name that begins with a dot
_MOST = 10  # problems of a CSV that are written out


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file.

    Attributes:
        part: of `PARTS`.
        path: below the root, with ``/``, or absolute.
        label: its class, or None.
        bytes: size of the file; -1 if it is not there.
        mtime: time of its last change, nanoseconds.
    """

    part: str
    path: str
    label: str | None
    bytes: int
    mtime: int


@dataclass(frozen=True)
class Listing:
    """All image files, sorted by part and path; labeled and unlabeled ones of the training part among each other.

    Attributes:
        root: the folder that relative paths begin at.
        entries: the files.
        classes: names of the classes of the training images, sorted as text; a class's number is its place here.
        notes: what a person should know, a sentence each.
    """

    root: Path
    entries: list[Entry]
    classes: list[str]
    notes: tuple[str, ...] = ()


def list_folders(root: Path) -> Listing:
    """List ``root/labeled/<class>/...`` and, where they are, ``unlabeled/...``, ``val/<class>/...``, ``test/<class>/``.

    Files are looked for at any depth, through links too. Every file counts as an image, whatever its name, but for
    those that begin with a dot, ``Thumbs.db`` and ``desktop.ini``.

    Raises:
        SemisupError: no such folders, images outside of class folders, unknown classes, or fewer than two of them.
    """
    try:
        present = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
        if "labeled" not in present:
            found = f"; its folders are {', '.join(map(printable, present[:8]))}" if present else "; it has no folders"
            near = next((near for name in present if "did you mean" in (near := nearest(name, _FOLDERS[:1]))), "")
            raise SemisupError(
                f"data.path: {root} has no folder 'labeled' (wanted: labeled/<class>/..., and perhaps unlabeled/..., "
                f"val/<class>/..., test/<class>/...){near or found}"
            )
        entries: list[Entry] = []
        problems: list[str] = []
        for folder in _FOLDERS:
            if folder in present:
                entries += _list_part(root, folder, problems)
    except OSError as error:
        raise SemisupError(f"data.path: {error.filename or root} cannot be read ({error.strerror})") from error
    others = [printable(name) for name in present if name not in _FOLDERS]
    notes = (f"not read: {', '.join(others[:8])} in {root}",) if others else ()
    return _listing(root, entries, problems, notes)


def list_csv(root: Path, table: Path) -> Listing:
    """List the rows of a CSV with the columns ``path`` (below ``root``, or absolute) and ``label`` (empty: unlabeled).

    A column ``split`` says ``train`` (or nothing), ``val`` or ``test``; other columns are not read. Images that are in
    no row are left out; a file that is not there is a bad file.

    Raises:
        SemisupError: every problem of the table.
    """
    problems: list[str] = []
    entries: dict[str, Entry] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            missing = [name for name in ("path", "label") if name not in columns]
            for name in missing:
                problems.append(f"no column '{name}' in its first line{nearest(name, columns) if columns else ''}")
            for row in reader if not missing else ():
                entry = _row(root, row, f"line {reader.line_num}", problems)
                if entry is not None and entry.path in entries:
                    problems.append(f"line {reader.line_num}: {printable(entry.path)} has a row already")
                elif entry is not None:
                    entries[entry.path] = entry
    except OSError as error:
        raise SemisupError(f"data.csv: {table} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SemisupError(f"data.csv: {table} is not a CSV file in UTF-8 ({error})") from error
    if len(problems) > _MOST:
        problems[_MOST:] = [f"and {len(problems) - _MOST} more"]
    raise_all(problems, f"data.csv: {table}")
    return _listing(root, list(entries.values()), [], ())


def printable(path: str) -> str:
    """Return a path without what a terminal cannot show: the bytes of names that are not UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def _row(root: Path, row: dict[str, str | None], where: str, problems: list[str]) -> Entry | None:
    path, label, split = (row.get(name) or "" for name in ("path", "label", "split"))
    label, split = label.strip(), split.strip() or "train"
    if not path:
        problems.append(f"{where}: no path")
    elif split not in PARTS:
        problems.append(f"{where}: unknown split '{split}'{nearest(split, PARTS)}")
    elif split != "train" and not label:
        problems.append(f"{where}: {printable(path)} is in split {split} and has no label")
    else:
        try:
            found = (root / path).stat()  # an absolute path stays what it is
        except (OSError, ValueError):
            return Entry(split, path, label or None, -1, 0)
        return Entry(split, path, label or None, found.st_size, found.st_mtime_ns)
    return None


def _list_part(root: Path, folder: str, problems: list[str]) -> Iterator[Entry]:
    """The files of one of `_FOLDERS`; the first folder below it is the class."""
    part = "train" if folder.endswith("labeled") else folder
    stray = 0
    for path, size, mtime in _walk(root / folder, folder, ()):
        words = path.split("/")
        if folder == "unlabeled":
            yield Entry(part, path, None, size, mtime)
        elif len(words) > 2:
            yield Entry(part, path, words[1], size, mtime)
        else:
            stray += 1
            example = path
    if stray:
        problems.append(f"{folder}: {stray} files in no class's folder, e.g. {printable(example)}")


def _walk(folder: Path, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of every file below; a link to a folder above is not followed round and round."""
    here = folder.stat()
    if (here.st_dev, here.st_ino) in above:
        return
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name[0] == "." or entry.name.lower() in _IGNORED:
                continue
            path = f"{name}/{entry.name}"
            if entry.is_dir():
                yield from _walk(folder / entry.name, path, (*above, (here.st_dev, here.st_ino)))
            elif entry.is_file():
                status = entry.stat()
                yield path, status.st_size, status.st_mtime_ns
            elif entry.is_symlink():
                yield path, -1, 0  # to nowhere: will be a bad file; pipes and sockets are not even that


def _listing(root: Path, entries: list[Entry], problems: list[str], notes: tuple[str, ...]) -> Listing:
    """Sort the files and check their classes."""
    classes = sorted({e.label for e in entries if e.part == "train" and e.label is not None})
    if len(classes) < 2:
        there = f"only '{printable(classes[0])}'" if classes else "none"
        problems.append(f"needs labeled training images of at least two classes, and there is {there}")
    else:
        for part in PARTS[1:]:
            for label in sorted({e.label or "" for e in entries if e.part == part} - set(classes)):
                problems.append(f"{part}: class '{printable(label)}' has no labeled training image")
    raise_all(problems, f"data.path: {root}")
    entries.sort(key=lambda e: (PARTS.index(e.part), e.path))
    return Listing(root, entries, classes, notes)
