"""The images of a person's folder, with whatever labels they have: a folder may begin with none at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semisup.data.decode import Fit
from semisup.data.entries import Entry, Listing, several, some
from semisup.data.folder import store_folder
from semisup.data.listing import NAMES, list_csv, list_folders
from semisup.data.store import Watch, prepare, unwatched
from semisup.data.walk import is_system, walk
from semisup.errors import SemisupError
from semisup.text import printable

__all__ = ["Pictures", "list_pictures", "read_pictures"]

_EVALUATED = (*NAMES["val"], *NAMES["test"])
_OTHER = (*NAMES["labeled"], *NAMES["unlabeled"], *_EVALUATED)


@dataclass(frozen=True)
class Pictures:
    """The readable images of a folder, row by row.

    Attributes:
        root: the folder.
        entries: path, part and class of each row.
        classes: names of the classes that have labels.
        images: (N, S, S, C) uint8.
        hashes: of the decoded pixels.
        store: folder of the decoded images.
        notes: what a person should know.
    """

    root: Path
    entries: list[Entry]
    classes: list[str]
    images: NDArray[np.uint8]
    hashes: list[str]
    store: Path
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each row, (N,); -1: unlabeled."""
        number = {name: k for k, name in enumerate(self.classes)}
        return np.array([-1 if e.label is None else number[e.label] for e in self.entries], np.int64)

    @property
    def training(self) -> NDArray[np.bool_]:
        """Which rows training may see, (N,)."""
        return np.array([entry.part == "train" for entry in self.entries], bool)

    def file(self, row: int) -> Path:
        """Return where the image of a row lies."""
        return self.root / self.entries[row].path


def list_pictures(root: Path, table: Path | None = None) -> Listing:
    """List a folder's images: as training does where there are labels, else all of them as unlabeled.

    Args:
        root: labeled/CLASS/... or, without images next to them, CLASS/...; unlabeled/..., val/CLASS/...,
            test/CLASS/...; or any folder of images, none of which has a label then.
        table: a CSV of path,label[,split] in place of the folders.

    Raises:
        SemisupError: no images, or what is there cannot be read as that.
    """
    if table is not None:
        return list_csv(root, table)
    if not root.is_dir():
        raise SemisupError(f"{root}: no such folder")
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
    if any(next(walk(entry, ""), None) for entry in folders if entry.name.lower() in NAMES["labeled"]):
        return list_folders(root)
    if sum(map(_is_class, folders)) > 1 and not _images_in(root):
        return list_folders(root)
    others: list[str] = []
    found = [Entry("train", path[1:], None, *rest) for path, *rest in walk(root, "", others)]
    found = [entry for entry in found if entry.path.split("/")[0].lower() not in _EVALUATED]
    if not found:
        raise SemisupError(f"{root}: no images in it")
    notes = [f"no folder 'labeled' with images in {root}: {several(len(found), 'image is', 'images are')} unlabeled"]
    if others:
        notes.append(f"not read, by name or content no images: {some([printable(name[1:]) for name in others])}")
    return Listing(root, sorted(found, key=lambda entry: entry.path), [], tuple(notes))


def _is_class(folder: Path) -> bool:
    """Whether training takes a folder for a class where none is called `labeled`."""
    return not is_system(folder.name) and folder.name.lower() not in _OTHER and _images_in(folder)


def _images_in(folder: Path) -> bool:
    return any(path.count("/") == 1 for path, *_ in walk(folder, ""))


def read_pictures(
    root: Path,
    shape: tuple[int, int, Fit],
    table: Path | None = None,
    cache: str | None = None,
    watch: Watch = unwatched,
) -> Pictures:
    """List a folder's images and decode them once, into the store that training at that size reads too.

    Args:
        root: see `list_pictures`.
        shape: side of the decoded images in pixels, channels (1 or 3), and how they become squares.
        table: see `list_pictures`.
        cache: where stores lie; None: ~/.cache/semisup/folders.
        watch: shows progress.

    Raises:
        SemisupError: as `list_pictures`, or none of them can be read.
    """
    listing = list_pictures(root, table)
    size, channels, fit = shape
    folder = store_folder(root, table, size, channels, cache, fit)
    store = prepare(root, listing.entries, size, channels, folder, fit=fit, watch=watch)
    if not len(store.good):
        raise SemisupError(f"{root}: none of its {len(listing.entries):,} images can be read")
    notes = listing.notes
    if store.bad:
        files = several(len(store.bad), "file", "files")
        notes = (*notes, f"{files} cannot be read, e.g. {printable(store.bad[0].path)} ({store.bad[0].reason})")
    entries = [listing.entries[i] for i in store.good]
    hashes = [str(store.records[i].hash) for i in store.good]
    return Pictures(root, entries, listing.classes, store.images(mapped=True), hashes, folder, notes)
