"""Which files below a folder are images: one rule for training, `semisup data prepare` and `semisup predict`.

An image is a regular file, or a link to one, whose name ends as those of images do or whose first bytes say so. Hidden
files and folders, and what operating systems leave behind, are passed over; of the other files the caller is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from semisup.data.decode import SUFFIXES
from semisup.errors import SemisupError

__all__ = ["FoundFile", "LocalFolder", "images_below", "is_system", "named_as_image", "walk"]

_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
_SYSTEM.add("system volume information")
# Pictures that cannot be read: as files they are bad, not absent.
_OTHER_PICTURES = (".avif", ".gif", ".jp2", ".jxl")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class FoundFile(NamedTuple):
    """An image file: its path as it is named, its size (-1: a link to nowhere), its last change in nanoseconds."""

    path: str
    bytes: int
    mtime: int


def is_system(name: str) -> bool:
    """Return whether a file or folder of that name is hidden or the operating system's own, and never an image."""
    return name.startswith(".") or name.lower() in _SYSTEM


def _fail(error: OSError) -> NoReturn:
    raise error


class LocalFolder:
    """A folder of images on this machine, as `list_folders` asks of it; `semisup.data.remote.Remote` is its twin."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the folders in a folder, sorted, but for those of operating systems."""
        with os.scandir(self.root / below) as found:
            return sorted(entry.name for entry in found if entry.is_dir() and not is_system(entry.name))

    def images(self, below: str, others: list[str] | None = None) -> Iterator[FoundFile]:
        """Yield every image at any depth below a folder, with its path below the root."""
        yield from walk(self.root / below, below, others)

    def images_right_in(self) -> list[str]:
        """Return the names of the images that lie in no folder below the root, sorted."""
        files = [path.name for path in self.root.iterdir() if path.is_file()]
        return sorted(name for name in files if named_as_image(name) and not is_system(name))


def walk(
    folder: Path, name: str, others: list[str] | None = None, on_error: Callable[[OSError], None] = _fail
) -> Iterator[FoundFile]:
    """Yield every image at any depth below a folder, through links, folder by folder in the order of their names.

    Args:
        folder: to search; it is searched even if it is hidden itself.
        name: what the yielded paths begin with in its place.
        others: gets the paths of the files that are no images.
        on_error: gets what a folder could not be read for; by default it is raised.
    """
    yield from _walk(folder, name, (), [] if others is None else others, on_error)


def images_below(folder: Path, name: str) -> list[FoundFile]:
    """Return every image at any depth below a folder, as `walk` does.

    Raises:
        SemisupError: a folder below it cannot be opened, so that some would be missing.
    """
    try:
        return list(walk(folder, name))
    except OSError as error:
        raise SemisupError(f"{error.filename or folder}: cannot be opened ({error.strerror})") from error


def _walk(
    folder: Path,
    name: str,
    above: tuple[tuple[int, int], ...],
    others: list[str],
    on_error: Callable[[OSError], None],
) -> Iterator[FoundFile]:
    """As `walk`; a link to one of the folders `above` is not followed round and round."""
    try:
        here = folder.stat()
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if not is_system(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        on_error(error)
        return
    if (here.st_dev, here.st_ino) in above:
        return
    for entry in entries:
        path = f"{name}/{entry.name}"
        try:
            if entry.is_dir():
                yield from _walk(folder / entry.name, path, (*above, (here.st_dev, here.st_ino)), others, on_error)
            elif entry.is_file():  # and no pipe, socket or device, which are never opened
                if _is_image(entry):
                    status = entry.stat()
                    yield FoundFile(path, status.st_size, status.st_mtime_ns)
                else:
                    others.append(path)
            elif entry.is_symlink() and named_as_image(entry.name):
                yield FoundFile(path, -1, 0)  # to nowhere: will be a bad file
        except OSError as error:
            on_error(error)


def named_as_image(name: str) -> bool:
    """Return whether a file's name ends as those of images do."""
    return name.lower().endswith((*SUFFIXES, *_OTHER_PICTURES))


def _is_image(file: os.DirEntry[str]) -> bool:
    """Return whether a regular file is to be read: by its name, else by how it begins."""
    if named_as_image(file.name):
        return True
    try:
        with Path(file.path).open("rb") as opened:
            start = opened.read(18)
    except OSError:
        return False
    bmp = start[:2] == b"BM" and start[15:18] == bytes(3)  # its header's size, little-endian, is below 256
    heif = start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
    return bmp or heif or start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
