"""Image files decoded once into a memory-mapped uint8 array, which is resumed, reused and kept up to date.

A store is a folder with `images-<hash>.npy`, the images that could be read, (n, size, size, channels) uint8, one
after the other, and `index.json`: a record of every file with its size, its time of change and the hash of its
decoded pixels, or the reason why it could not be read. The index is written last and replaced whole: where it is, the
store is finished.

While it is made, `partial.npy` and `partial.jsonl` grow by a block of files at a time, always in the order of the
listing, pixels before records. After a kill at any moment the records say how much there is, and the rest is decoded.
A change of a few files makes the array anew, but only those are decoded; the other rows are copied.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from semisup.data.decode import NEEDS_HEIF, Fit, can_read_heif
from semisup.data.decoders import CHUNK, Decoded, decoders
from semisup.data.image_data import channel_levels, mean_and_deviation
from semisup.data.listing import Entry
from semisup.data.remote import Fetch, Root
from semisup.data.rows import take
from semisup.errors import SemisupError
from semisup.files import locked, replacing, write_atomically
from semisup.records import plain_name
from semisup.text import csv_text

__all__ = ["BLOCK", "Record", "Store", "Watch", "at_hand", "prepare", "unwatched"]

VERSION = 1
"""Of the layout and of what `decode` makes of a file; another one makes a store anew."""
BLOCK = 256
"""Files between two writes to the disk, where there are few processors: what a kill can cost, a second or less."""

SHARD = "shard"
"""Folder in a store that holds the files of a block that come from an address."""

Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows progress: gets what is done and the number of files; its context gives a function that gets how many are."""


def unwatched(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one file.

    Attributes:
        part, path, bytes, mtime: of its `Entry`.
        hash: of its decoded pixels, 32 hex digits; None if it could not be read.
        reason: why not.
    """

    part: str
    path: str
    bytes: int
    mtime: int
    hash: str | None
    reason: str | None

    def is_of(self, entry: Entry) -> bool:
        """Return whether the file is as it was."""
        return (self.part, *self.file) == (entry.part, entry.path, entry.bytes, entry.mtime)

    @property
    def file(self) -> tuple[str, int, int]:
        """What tells a file from a changed one."""
        return self.path, self.bytes, self.mtime

    def line(self) -> list[str | int | None]:
        """As JSON has it."""
        return [self.part, self.path, self.bytes, self.mtime, self.hash, self.reason]


@dataclass(frozen=True)
class Store:
    """A finished store.

    Attributes:
        folder: where it lies.
        path: its array.
        records: one per file, in the order of the listing; the readable ones are the rows of the array.
        statistics: mean and std per channel of the training images, as `channel_statistics` has them.
        decoded: files that were decoded just now; the others were in the store already.
    """

    folder: Path
    path: Path
    records: list[Record]
    statistics: tuple[list[float], list[float]]
    decoded: int = 0

    @cached_property
    def good(self) -> NDArray[np.int64]:
        """Which records are rows."""
        return np.flatnonzero([record.hash is not None for record in self.records])

    @property
    def bad(self) -> list[Record]:
        """Records of the files that could not be read."""
        return [record for record in self.records if record.hash is None]

    @property
    def nbytes(self) -> int:
        """Size of the array's file."""
        return self.path.stat().st_size

    def images(self, *, mapped: bool) -> NDArray[np.uint8]:
        """Return the array, (n, size, size, channels): memory-mapped, read-only; or in memory."""
        array: NDArray[np.uint8] = np.load(self.path, mmap_mode="r" if mapped else None)
        return array


def prepare(
    root: Root,
    entries: Sequence[Entry],
    size: int,
    channels: int,
    folder: Path,
    *,
    fit: Fit = "crop",
    workers: int | None = None,
    watch: Watch = unwatched,
) -> Store:
    """Bring the store in `folder` up to date with the files and return it; at once if nothing has changed.

    Two processes that ask for one store wait for each other. Processes that still have the old array mapped keep it.

    Args:
        root: where relative paths begin; from an address files are fetched a block at a time.
        entries: the files, in the order of their rows.
        size: side of the images, pixels.
        channels: 1 or 3.
        folder: of the store; made if missing. Images of another `fit` need another.
        fit: how images that are no squares become some.
        workers: processes that decode; None: one per core that this process may use.
        watch: shows progress.

    Raises:
        SemisupError: no room for it, the folder cannot be written to, a worker died, or a server fails. What is done is
            kept.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise SemisupError(f"data.cache: {folder} cannot be written to ({error.strerror}); name another") from error
    with locked(folder):
        old = _read(folder, size, channels)
        if old is not None and _matching(old.records, entries) == len(entries) == len(old.records):
            wanting = any(record.reason == NEEDS_HEIF for record in old.bad)
            if not (wanting and can_read_heif()):  # what wanted a library that is there now is tried again
                return old
        decoded = 0
        with _Partial(folder, (size, size, channels), entries) as done:
            _require_room(folder, (len(entries) - len(done.records)) * size * size * channels)
            shown = watch(f"decoding {root}", len(entries))
            with shown as advance, decoders(workers) as run, at_hand(root, folder / SHARD) as fetch:
                kept = _Kept(old)
                advance(len(done.records))
                step = max(BLOCK, 4 * CHUNK * (os.cpu_count() or 1))
                for start in range(len(done.records), len(entries), step):
                    block = entries[start : start + step]
                    known = [kept.find(entry) for entry in block]
                    fresh = [
                        (entry.path, entry.bytes) for entry, found in zip(block, known, strict=True) if found is None
                    ]
                    results = run(*fetch(fresh), size, channels, fit)
                    done.append(block, (found or next(results) for found in known))
                    decoded += len(fresh)
                    advance(len(done.records))
        return _finish(done, decoded)


def _require_room(folder: Path, wanted: int) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        SemisupError: fewer bytes than wanted are free.
    """
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise SemisupError(
            f"data.cache: the decoded images need {wanted / 2**30:.1f} GiB more in {folder}, and there are "
            f"{free / 2**30:.1f}; name another folder"
        )


def at_hand(root: Root, shard: Path) -> AbstractContextManager[Fetch]:
    """Give a function that says where some files are on this machine, which fetches those that are not."""
    if isinstance(root, Path):
        return nullcontext(lambda files: (root, [path for path, _ in files]))
    return root.fetching(shard)


class _Kept:
    """Finds what an older store has of a file that has not changed."""

    def __init__(self, store: Store | None) -> None:
        self.images = store.images(mapped=True) if store is not None else None
        self.rows: dict[tuple[str, int, int], tuple[int, str]] = {}
        for row, record in enumerate(store.records[i] for i in store.good) if store is not None else ():
            self.rows[record.file] = row, str(record.hash)

    def find(self, entry: Entry) -> Decoded | None:
        """Return its image and hash; try again what could not be read: reading may have failed for want of memory."""
        row, digest = self.rows.get((entry.path, entry.bytes, entry.mtime), (None, ""))
        if row is None or self.images is None:
            return None
        return take(self.images, slice(row, row + 1))[0], digest


class _Partial:
    """A store that is being made."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], entries: Sequence[Entry]) -> None:
        self.folder, self.shape = folder, shape
        self.path, self.journal_path = folder / "partial.npy", folder / "partial.jsonl"
        self.records: list[Record] = []
        self.good = 0
        header = _header(0, shape)
        self.start = len(header)
        lines = self._lines()
        matching = _matching((record for record, _ in lines), entries)
        end = lines[matching - 1][1] if matching else 0
        self.records = [record for record, _ in lines[:matching]]
        self.good = sum(record.hash is not None for record in self.records)
        self.images: BinaryIO = self.path.open("r+b" if matching else "wb")
        self.journal: BinaryIO = self.journal_path.open("r+b" if matching else "wb")
        if not matching:
            self.images.write(header)
            self.journal.write(json.dumps([VERSION, *shape]).encode() + b"\n")
            end = self.journal.tell()
        # What was written after the last record is not known to be whole.
        self.images.truncate(self.start + self.good * int(np.prod(shape)))
        self.journal.truncate(end)
        self.images.seek(0, os.SEEK_END)
        self.journal.seek(0, os.SEEK_END)

    def _lines(self) -> list[tuple[Record, int]]:
        """Return the whole records of the journal whose pixels are there, each with its end in the file."""
        found: list[tuple[Record, int]] = []
        try:
            rows = (self.path.stat().st_size - self.start) // int(np.prod(self.shape))
            content = self.journal_path.read_bytes()
        except FileNotFoundError:
            return found
        end = 0
        for number, line in enumerate(content.splitlines(keepends=True)):
            end += len(line)
            try:
                fields = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                break
            if number == 0 and fields != [VERSION, *self.shape]:
                break
            if number == 0:
                continue
            try:
                record = _record(fields)
            except TypeError:
                break
            rows -= record.hash is not None
            if rows < 0:
                break
            found.append((record, end))
        return found

    def append(self, entries: Sequence[Entry], results: Iterable[Decoded]) -> None:
        """Write the results of the next files, safe from a power cut: first the pixels, then the records."""
        records = []
        for entry, (image, text) in zip(entries, results, strict=True):
            found, reason = (text, None) if image is not None else (None, text)
            records.append(Record(entry.part, entry.path, entry.bytes, entry.mtime, found, reason))
            if image is not None:
                self.images.write(image.data)
        _sync(self.images)
        self.journal.write(b"".join(json.dumps(record.line()).encode() + b"\n" for record in records))
        _sync(self.journal)
        self.records += records
        self.good += sum(record.hash is not None for record in records)

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *exception: object) -> None:
        self.images.close()
        self.journal.close()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _header(rows: int, shape: tuple[int, int, int]) -> bytes:
    """Return the first bytes of an .npy file; numpy leaves room in them, so that every number of rows has as many."""
    header = io.BytesIO()
    content = {"shape": (rows, *shape), "fortran_order": False, "descr": "|u1"}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def _matching(records: Iterable[Record], entries: Sequence[Entry]) -> int:
    """Return how many of the first records are of the first files."""
    pairs = zip(records, entries, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0].is_of(pair[1]), pairs))


def _finish(partial: _Partial, decoded: int) -> Store:
    """Turn a whole partial store into the finished one."""
    folder = partial.folder
    digest = hashlib.sha256(repr(partial.shape).encode())
    for record in partial.records:
        digest.update(f"{record.hash}".encode())
    path = folder / f"images-{digest.hexdigest()[:16]}.npy"
    with partial.path.open("r+b") as file:
        file.write(_header(partial.good, partial.shape))
        _sync(file)
    train = sum(record.hash is not None and record.part == "train" for record in partial.records)
    images: NDArray[np.uint8] | None = np.load(partial.path, mmap_mode="r") if train else None
    statistics = ([], []) if images is None else mean_and_deviation(channel_levels(images[:train]))
    partial.path.replace(path)
    index = {
        "version": VERSION,
        "shape": partial.shape,
        "images": path.name,
        "statistics": statistics,
        "files": [record.line() for record in partial.records],
    }
    write_atomically(folder / "index.json", json.dumps(index).encode())
    partial.journal_path.unlink()
    for other in folder.glob("images-*.npy"):
        if other != path:
            other.unlink()
    store = Store(folder, path, partial.records, statistics, decoded)
    write_table(folder / "bad_files.csv", ("path", "reason"), [(r.path, str(r.reason)) for r in store.bad])
    return store


def _read(folder: Path, size: int, channels: int) -> Store | None:
    """Return the finished store of a folder; None where there is none, or one of another version, or a damaged one."""
    try:
        index = json.loads((folder / "index.json").read_bytes())
        if index["version"] != VERSION or index["shape"] != [size, size, channels]:
            return None
        records = [_record(fields) for fields in index["files"]]
        mean, std = index["statistics"]
        if not all(isinstance(value, float) for value in (*mean, *std)) or not {len(mean), len(std)} <= {0, channels}:
            return None
        store = Store(folder, folder / plain_name(index["images"]), records, (mean, std))
        wanted = len(_header(0, (size, size, channels))) + len(store.good) * size * size * channels
        return store if store.nbytes == wanted else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _record(fields: Any) -> Record:
    """Return a record that was read.

    Raises:
        TypeError: its values are not of their types.
    """
    record = Record(*fields)
    part, path, size, mtime, digest, reason = fields
    if not all(isinstance(value, str) for value in (part, path, digest or "", reason or "")):
        raise TypeError("text")
    if type(size) is not int or type(mtime) is not int:
        raise TypeError("numbers")
    return record


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file; names of files that are not UTF-8 keep their bytes."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([csv_text(cell) for cell in row] for row in rows)
