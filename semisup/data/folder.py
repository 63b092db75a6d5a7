"""A person's own images as a data set: list the files, decode them once, check them, hand them over.

    root/labeled/<class>/...     images with their class's name as the folder's
    root/unlabeled/...           at any depth
    root/val/<class>/...         perhaps: only validates (`validation/accuracy`), is never trained on
    root/test/<class>/...        perhaps: read once, at the end

or `data.path` and `data.csv`, a table of `path,label` and perhaps `split`; see `semisup.data.listing`. Both may be at
an address, see `semisup.data.remote`. How a file becomes pixels is said in `semisup.data.decode`, where they are kept
in `semisup.data.store`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semisup.data.addresses import place
from semisup.data.decode import Fit
from semisup.data.downloads import CACHE
from semisup.data.duplicates import Duplicates, Item, find_duplicates
from semisup.data.entries import some
from semisup.data.image_data import ImageData, Known, level_notes
from semisup.data.listing import PARTS, Entry, Listing, list_csv, list_folders
from semisup.data.remote import Root
from semisup.data.rows import take
from semisup.data.store import Store, Watch, prepare, unwatched, write_table
from semisup.data.table import UNLABELED
from semisup.errors import SemisupError, raise_all
from semisup.files import at_home, locked
from semisup.settings.schema import DataConfig
from semisup.text import printable

__all__ = ["PreparedFolder", "prepare_folder", "read_folder", "store_folder"]


@dataclass(frozen=True)
class PreparedFolder:
    """A listing and the store of its images.

    Attributes:
        listing: every file.
        store: what became of each.
        config: what was asked for.
        duplicates: images that are there twice, by path.
        dropped: paths of the test and validation images that are left out, as `data.drop_leaks` asks for.
    """

    listing: Listing
    store: Store
    config: DataConfig
    duplicates: Duplicates
    dropped: frozenset[str] = frozenset()

    @property
    def readable(self) -> list[Entry]:
        """The files that are rows of the store, the dropped ones too."""
        return [self.listing.entries[i] for i in self.store.good]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which rows of the store are used."""
        return np.array([entry.path not in self.dropped for entry in self.readable], bool)

    def counts(self) -> dict[str, Counter[str | None]]:
        """Part -> class (None: unlabeled) -> readable images."""
        found: dict[str, Counter[str | None]] = {part: Counter() for part in PARTS}
        for entry, kept in zip(self.readable, self.kept, strict=True):
            found[entry.part][entry.label] += bool(kept)
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

    def notes(self, refused: Collection[str] = ()) -> tuple[str, ...]:
        """Return what a person should know, a sentence each.

        Args:
            refused: keys of `problems` that are said elsewhere.
        """
        notes = list(self.listing.notes)
        if self.store.bad and "max_bad" not in refused:
            notes.append(self._bad_text("cannot be read and are left out"))
        told = self.duplicates.notes(self.config, self._where)
        notes += [note for key, note in told.items() if key not in refused]
        images, parts = self.store.images(mapped=True), [entry.part for entry in self.readable]  # one after another
        for part in [part for part in PARTS if part in parts]:
            notes += level_notes(images[parts.index(part) :][: parts.count(part)], f"{part} images")
        return tuple(notes)

    def _where(self, table: str) -> str:
        return f"; all of them: {self.store.folder / table}.csv"

    def problems(self, *, flags: bool = False) -> dict[str, str]:
        """Return what makes the images unfit for training, by the key that it breaks.

        Args:
            flags: name keys as `semisup data prepare` spells them, not as a recipe does.
        """
        problems, most = {}, self.config.max_bad
        if len(self.store.bad) > most * len(self.listing.entries):
            key = "--max-bad" if flags else "data.max_bad"
            text = self._bad_text(f"cannot be read, more than {most:.3g} of all")
            problems["max_bad"] = f"{key}: {text}. Mend or remove them, or raise {key}"
        counts = self.counts()
        missing = [printable(label) for label in self.listing.classes if not counts["train"][label]]
        if missing:
            problems["path"] = f"data.path: no image of class '{missing[0]}' can be read"
        return problems | self.duplicates.problems(self.config, self._where, flags=flags)

    def _bad_text(self, what: str) -> str:
        bad = self.store.bad
        return (
            f"{len(bad):,} of {len(self.listing.entries):,} files {what}: "
            f"{some([f'{printable(r.path)} ({r.reason})' for r in bad])}; all of them: "
            f"{self.store.folder / 'bad_files.csv'}"
        )

    def check(self) -> None:
        """Refuse to train on what is not fit for it.

        Raises:
            SemisupError: too many bad files, a class without any good one, test images among the training images, or a
                picture under two classes; all of it in one message.
        """
        problems = list(self.problems().values())
        if len(problems) == 1:
            raise SemisupError(problems[0])
        raise_all(problems, f"data.path: {self.listing.root}")


def prepare_folder(config: DataConfig, *, workers: int | None = None, watch: Watch = unwatched) -> PreparedFolder:
    """List the files and bring their store up to date.

    The store lies in `data.cache` or `~/.cache/semisup/folders`, never next to the images: those may be read-only,
    shared, or backed up. Its name has the root's and a hash of its place.

    Args:
        config: `path`, `csv`, `size`, `fit`, `channels` and `cache` are read.
        workers: processes that decode; None: one per core.
        watch: shows progress.

    Raises:
        SemisupError: a setting is missing, the folder has not the layout, or the store cannot be written.
    """
    raise_all(missing_settings(config))
    assert config.path is not None and config.size is not None
    root = place(config.path)
    table = None if config.csv is None else at_home(config.csv, "data.csv")
    unlabeled = UNLABELED if config.unlabeled_values is None else config.unlabeled_values
    listing = list_folders(root) if table is None else list_csv(root, table, unlabeled)
    channels = 3 if config.channels is None else config.channels
    folder = store_folder(root, table, config.size, channels, config.cache, config.fit)
    store = prepare(root, listing.entries, config.size, channels, folder, fit=config.fit, workers=workers, watch=watch)
    labels = {(entry.part, entry.path): entry.label for entry in listing.entries}
    items = [Item(r.path, r.part, labels[r.part, r.path], r.hash) for r in store.records if r.hash is not None]
    found = find_duplicates(items, drop_leaks=config.drop_leaks)
    dropped = frozenset(path for path, _ in found.leaks) if config.drop_leaks else frozenset()
    with locked(folder):  # who takes the lock clears away what looks like a killed process's writes
        write_table(folder / "leaks.csv", ("path", "same_as"), found.leaks)
        write_table(folder / "conflicts.csv", ("path", "class", "same_as", "of_class"), found.conflicts)
    return PreparedFolder(listing, store, config, found, dropped)


def store_folder(
    root: Root, table: Path | None, size: int, channels: int, cache: str | None = None, fit: Fit = "crop"
) -> Path:
    """Return where the decoded images of a folder lie, at a size; `cache` and `fit` are the keys of `data`."""
    home = at_home(f"{CACHE}/folders" if cache is None else cache, "data.cache")
    whole = root.resolve() if isinstance(root, Path) else root
    both = f"{whole}\n{'' if table is None else table.resolve()}"
    key = hashlib.sha256(both.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", whole.name)[:60]
    return home / f"{name}-{key}-{size}x{channels}{'' if fit == 'crop' else f'-{fit}'}"


def missing_settings(config: DataConfig) -> list[str]:
    """Return a sentence for each key of `data` that a folder needs and that is not there."""
    needed = {
        "path": (config.path, "the folder of images, e.g. data.path=photos"),
        "size": (config.size, "the side that images are scaled to, in pixels, e.g. data.size=64"),
    }
    missing = [(key, what) for key, (value, what) in needed.items() if value is None]
    return [f"data.{key}: missing; source folder needs {what}" for key, what in missing]


def read_folder(config: DataConfig, watch: Watch = unwatched) -> ImageData:
    """Hand over the images, in memory if they take `data.memory` or less, else as memory maps.

    Raises:
        SemisupError: as `prepare_folder` and `PreparedFolder.check`.
    """
    prepared = prepare_folder(config, watch=watch)
    prepared.check()
    store, classes, kept = prepared.store, prepared.listing.classes, prepared.kept
    images = store.images(mapped=store.nbytes > config.memory * 2**30)
    number = {name: k for k, name in enumerate(classes)} | {None: -1}
    readable = [entry for entry, used in zip(prepared.readable, kept, strict=True) if used]
    labels = np.array([number[entry.label] for entry in readable], np.int64)
    parts = np.array([PARTS.index(entry.part) for entry in readable])
    first_val, first_test = np.searchsorted(parts, [1, 2])
    if not kept.all():  # of test and validation images alone: the training images stay where they are
        later = take(images, np.flatnonzero(kept)[first_val:])
        x_val, x_test = later[: first_test - first_val], later[first_test - first_val :]
    else:
        x_val, x_test = images[first_val:first_test], images[first_test:]
    pixels = hashlib.sha256("".join(str(store.records[i].hash) for i in store.good[kept]).encode())
    has_val = first_val < first_test
    if has_val and config.validation:
        raise SemisupError(
            f"data.validation: must be 0 where the data have validation images of their own, not {config.validation}"
        )
    return ImageData(
        name="folder",
        x_train=images[:first_val],
        y_train=labels[:first_val],
        x_test=x_test,
        y_test=labels[first_test:],
        classes=[printable(name) for name in classes],
        flip=False,
        x_val=x_val if has_val else None,
        y_val=labels[first_val:first_test] if has_val else None,
        known=Known(pixels.hexdigest(), store.statistics),
        notes=prepared.notes(),
    )
