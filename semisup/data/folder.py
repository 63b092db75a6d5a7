"""A person's own images as a data set: list the files, decode them once, check them, hand them over.

    root/labeled/<class>/...     images with their class's name as the folder's
    root/unlabeled/...           at any depth
    root/val/<class>/...         perhaps: only validates (``validation/accuracy``), is never trained on
    root/test/<class>/...        perhaps: read once, at the end

or ``data.path`` and ``data.csv``, a table of ``path,label`` and perhaps ``split``; see `semisup.data.listing`. How a
file becomes pixels is said in `semisup.data.decode`, where they are kept in `semisup.data.store`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semisup.config.schema import DataConfig
from semisup.data.downloads import CACHE
from semisup.data.image_data import ImageData, Known
from semisup.data.listing import PARTS, Entry, Listing, list_csv, list_folders, printable
from semisup.data.store import Record, Store, Watch, prepare, unwatched, write_table
from semisup.errors import SemisupError

__all__ = ["PreparedFolder", "prepare_folder", "read_folder"]

_SHOWN = 5  # files named in a message


@dataclass(frozen=True)
class PreparedFolder:
    """A listing and the store of its images.

    Attributes:
        listing: every file.
        store: what became of each.
        leaks: pairs of a test or validation image and an equal image of an earlier part, by path.
    """

    listing: Listing
    store: Store
    leaks: list[tuple[str, str]]

    @property
    def readable(self) -> list[Entry]:
        """The files that are rows of the store."""
        return [self.listing.entries[i] for i in self.store.good]

    def counts(self) -> dict[str, Counter[str | None]]:
        """Part -> class (None: unlabeled) -> readable images."""
        found: dict[str, Counter[str | None]] = {part: Counter() for part in PARTS}
        for entry in self.readable:
            found[entry.part][entry.label] += 1
        return found

    def summary(self) -> list[str]:
        """Images per class and part as a table in text, and where they are stored."""
        counts, store = self.counts(), self.store
        names = {name: printable(name) for name in self.listing.classes}
        width = max(len(text) for text in (*names.values(), "(unlabeled)"))
        lines = [f"{'class':<{width}} {'labeled':>9} {'val':>9} {'test':>9}"]
        for name, text in names.items():
            numbers = [f"{counts[part][name]:9,}" for part in PARTS]
            lines.append(f"{text:<{width}} {' '.join(numbers)}")
        lines.append(f"{'(unlabeled)':<{width}} {counts['train'][None]:9,}")
        kept = len(self.listing.entries) - store.decoded
        _, *shape = store.images(mapped=True).shape
        lines.append(
            f"{len(store.good):,} images of {'x'.join(map(str, shape))}, {store.nbytes / 2**20:,.1f} MiB in "
            f"{store.path}: {store.decoded:,} decoded now, {kept:,} before; {len(store.bad):,} cannot be read"
        )
        return lines

    def notes(self) -> tuple[str, ...]:
        """What a person should know, a sentence each."""
        notes = list(self.listing.notes)
        if self.store.bad:
            notes.append(
                f"{len(self.store.bad):,} of {len(self.listing.entries):,} files cannot be read and are left out: "
                f"{_some([f'{printable(r.path)} ({r.reason})' for r in self.store.bad])}; all of them: "
                f"{self.store.folder / 'bad_files.csv'}"
            )
        if self.leaks:
            notes.append(f"{_leak_text(self.leaks)}; all of them: {self.store.folder / 'leaks.csv'}")
        return tuple(notes)

    def check(self, max_bad: float, *, allow_leakage: bool) -> None:
        """Refuse to train on what is not fit for it.

        Raises:
            SemisupError: too many bad files, a class without any good one, or test images in the training set.
        """
        total, bad = len(self.listing.entries), self.store.bad
        if len(bad) > max_bad * total:
            raise SemisupError(
                f"data.max_bad: {len(bad):,} of {total:,} files cannot be read, more than {max_bad:.3g} of all: "
                f"{_some([f'{printable(r.path)} ({r.reason})' for r in bad])}; all of them: "
                f"{self.store.folder / 'bad_files.csv'}. Mend or remove them, or raise data.max_bad"
            )
        counts = self.counts()
        missing = [name for name in self.listing.classes if not counts["train"][name]]
        if missing:
            raise SemisupError(f"data.path: no image of class '{printable(missing[0])}' can be read")
        if self.leaks and not allow_leakage:
            raise SemisupError(
                f"data.allow_leakage: {_leak_text(self.leaks)}; all of them: {self.store.folder / 'leaks.csv'}. Remove "
                f"them, or allow it with data.allow_leakage=true"
            )


def prepare_folder(config: DataConfig, *, workers: int | None = None, watch: Watch = unwatched) -> PreparedFolder:
    """List the files and bring their store up to date.

    The store lies in ``data.cache`` or ``~/.cache/semisup/folders``, never beside the images: those may be read-only,
    shared, or backed up. Its name has the root's and a hash of its place.

    Args:
        config: ``path``, ``csv``, ``size``, ``channels`` and ``cache`` are read.
        workers: processes that decode; None: one per core.
        watch: shows progress.

    Raises:
        SemisupError: a setting is missing, the folder has not the layout, or the store cannot be written.
    """
    if config.path is None:
        raise SemisupError("data.path: missing; source folder needs the folder of images, e.g. data.path=photos")
    if config.size is None:
        raise SemisupError(
            "data.size: missing; source folder needs the side that images are scaled to, in pixels, e.g. data.size=64"
        )
    root = Path(config.path).expanduser()
    table = None if config.csv is None else Path(config.csv).expanduser()
    listing = list_folders(root) if table is None else list_csv(root, table)
    channels = 3 if config.channels is None else config.channels
    cache = CACHE / "folders" if config.cache is None else Path(config.cache).expanduser()
    place = f"{root.resolve()}\n{'' if table is None else table.resolve()}"
    key = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", root.resolve().name)[:60]
    folder = cache / f"{name}-{key}-{config.size}x{channels}"
    store = prepare(root, listing.entries, config.size, channels, folder, workers=workers, watch=watch)
    leaks = find_leaks(store.records)
    write_table(folder / "leaks.csv", ("path", "same_as"), leaks)
    return PreparedFolder(listing, store, leaks)


def read_folder(config: DataConfig, watch: Watch = unwatched) -> ImageData:
    """Hand over the images, in memory if they take ``data.memory`` or less, else as memory maps.

    Raises:
        SemisupError: as :func:`prepare_folder` and :meth:`PreparedFolder.check`.
    """
    prepared = prepare_folder(config, watch=watch)
    prepared.check(config.max_bad, allow_leakage=config.allow_leakage)
    store, classes = prepared.store, prepared.listing.classes
    images = store.images(mapped=store.nbytes > config.memory * 2**30)
    number = {name: k for k, name in enumerate(classes)} | {None: -1}
    labels = np.array([number[entry.label] for entry in prepared.readable], np.int64)
    parts = np.array([PARTS.index(entry.part) for entry in prepared.readable])
    first_val, first_test = np.searchsorted(parts, [1, 2])
    pixels = hashlib.sha256("".join(str(store.records[i].hash) for i in store.good).encode())
    has_val = first_val < first_test
    if has_val and config.validation:
        raise SemisupError(
            f"data.validation: must be 0 where the data have validation images of their own, not {config.validation}"
        )
    return ImageData(
        name="folder",
        x_train=images[:first_val],
        y_train=labels[:first_val],
        x_test=images[first_test:],
        y_test=labels[first_test:],
        classes=[printable(name) for name in classes],
        flip=False,
        x_val=images[first_val:first_test] if has_val else None,
        y_val=labels[first_val:first_test] if has_val else None,
        known=Known(pixels.hexdigest(), store.statistics),
        notes=prepared.notes(),
    )


def find_leaks(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Test and validation images whose decoded pixels equal an image of an earlier part, labeled or not.

    Equal pixels, not equal files: a copy with other metadata, or saved again without loss, is a copy.

    Args:
        records: in the order of their parts.

    Returns:
        Pairs of paths: the image, and the first image that it equals.
    """
    first: dict[str, Record] = {}
    leaks = []
    for record in records:
        if record.hash is not None:
            before = first.setdefault(record.hash, record)
            if before.part != record.part:
                leaks.append((record.path, before.path))
    return leaks


def _leak_text(leaks: Sequence[tuple[str, str]]) -> str:
    pairs = [f"{printable(path)} = {printable(same)}" for path, same in leaks]
    return f"{len(leaks):,} test or validation images are also among the images before them (leakage): {_some(pairs)}"


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more
