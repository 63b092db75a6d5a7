"""The files of a person's own images, with their classes and parts, as their folders say; `table` reads a CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from semisup.data.entries import PARTS, Entry, Listing, make_listing, several, some
from semisup.data.remote import Remote, Root
from semisup.data.table import list_csv
from semisup.data.walk import LocalFolder
from semisup.errors import SemisupError, near, not_there
from semisup.files import whole
from semisup.text import printable

__all__ = ["NAMES", "PARTS", "Entry", "Listing", "list_csv", "list_folders", "part_with"]

NAMES = {
    "labeled": ("labeled", "labelled", "train", "training"),
    "unlabeled": ("unlabeled", "unlabelled"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The folders that are read, and how else they are called, in capitals too."""
Folder: TypeAlias = LocalFolder | Remote
_LAYOUT = "labeled/<class>/..., and perhaps unlabeled/..., val/<class>/..., test/<class>/..."


def list_folders(root: Root) -> Listing:
    """List `root/labeled/<class>/...` and, where they are, `unlabeled/...`, `val/<class>/...`, `test/<class>/`.

    The folders may have the names that torchvision and others give them (train, valid, ...), and where none of the
    first kind is there, the classes' folders may lie in `root` itself; what is read otherwise is said in the notes.
    Which files are images, `semisup.data.walk` says.

    Raises:
        SemisupError: no such folders, images outside of class folders, unknown classes, or fewer than two of them.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    notes: list[str] = []
    others: list[str] = []
    tree = LocalFolder(root) if isinstance(root, Path) else root
    try:
        present = tree.folders()
        folders, classes = _folders(root, tree, present, problems, notes)
        for part, folder in folders.items():
            entries += _list_part(tree, part, folder, problems, notes, others)
        for name in classes:
            entries += [Entry("train", path, name, *file) for path, *file in tree.images(name, others)]
    except FileNotFoundError as error:
        if not isinstance(root, Path) or root.exists():
            raise SemisupError(f"data.path: {error.filename or root} cannot be read ({error.strerror})") from error
        raise SemisupError(f"data.path: {not_there(root)}") from None
    except NotADirectoryError:
        raise SemisupError(f"data.path: {_full(root)} is a file; unpack it, and name the folder") from None
    except OSError as error:
        raise SemisupError(f"data.path: {error.filename or root} cannot be read ({error.strerror})") from error
    unread = [name for name in present if name not in (*folders.values(), *classes)] + tree.images_right_in()
    if unread:
        notes.append(f"not read: {some([printable(name) for name in unread])} in {root}")
    if others:
        files = several(len(others), "file that is no image", "files that are no images")
        notes.append(f"{files}, by name or content, not read: {some([printable(name) for name in others])}")
    return make_listing(root, entries, problems, notes)


def part_with(folder: Path, root: Path) -> str | None:
    """Return which of the folders that are read below `root` another folder is, or lies in; None: none of them."""
    folder, root = whole(folder), whole(root)
    first = folder.relative_to(root).parts[:1] if folder.is_relative_to(root) else ()
    return next((name for name in first if any(name.lower() in names for names in NAMES.values())), None)


def _full(root: Root) -> Root:
    return root.absolute() if isinstance(root, Path) else root


def _folders(
    root: Root, tree: Folder, present: list[str], problems: list[str], notes: list[str]
) -> tuple[dict[str, str], list[str]]:
    """Return which folder has which part (a key of `NAMES`), and the classes' folders where they lie in the root."""
    folders = {}
    for part, names in NAMES.items():
        found = [name for name in present if name == part] or [name for name in present if name.lower() in names]
        if len(found) > 1:
            problems.append(f"{' and '.join(found)}: both may be the folder '{part}'; rename one")
        elif found:
            folders[part] = found[0]
            if found[0] != part:
                notes.append(f"the folder '{found[0]}' is read as '{part}'")
    if "labeled" in folders or problems:
        return folders, []
    classes = [name for name in present if name not in folders.values() and _has_images(tree, name)]
    if len(classes) < 2:
        raise SemisupError(
            f"data.path: {_full(root)} has no folder 'labeled' (wanted: {_LAYOUT}){_hint(root, tree, present)}"
        )
    shown = some([printable(name) for name in classes])
    notes.append(f"there is no folder 'labeled'; the folders {shown} are read as its classes")
    return folders, classes


def _has_images(tree: Folder, name: str) -> bool:
    """Return whether some of the files right in a folder are images."""
    return any(file.path.count("/") == 1 for file in tree.images(name))


def _hint(root: Root, tree: Folder, present: list[str]) -> str:
    """Say where the layout may be instead, else what is there."""
    for name in present:
        inner = [folder for folder in tree.folders(name) if folder.lower() in NAMES["labeled"]]
        if inner:
            place = root / printable(name) if isinstance(root, Path) else f"{root}/{printable(name)}"
            return f"; {printable(name)} has a folder '{inner[0]}': did you mean data.path={place}?"
    known = [other for others in NAMES.values() for other in others]
    for name in (name for name in present if name.lower() not in known):
        if close := near(name, ["labeled"]):
            return f"; there is '{printable(name)}'{close}"
    names = some([printable(name) for name in present])
    folders = f"; its folders are {names}" if present else "; it has no folders"
    images = tree.images_right_in()
    if not images:
        return folders
    return (
        f"{folders}, and {several(len(images), 'image lies', 'images lie')} right in it; a CSV of path,label can name "
        f"their classes: data.csv, or --labels of semisup init"
    )


def _list_part(
    tree: Folder, part: str, folder: str, problems: list[str], notes: list[str], others: list[str]
) -> Iterator[Entry]:
    """Yield the files of one of `NAMES`; the first folder below it is the class."""
    in_part = "train" if part.endswith("labeled") else part
    stray: list[str] = []
    filled: dict[str, set[str]] = {}
    for path, size, mtime in tree.images(folder, others):
        words = path.split("/")
        if part == "unlabeled":
            yield Entry(in_part, path, None, size, mtime)
        elif len(words) > 2:
            filled.setdefault(words[1], set()).add(words[2] if len(words) > 3 else "")
            yield Entry(in_part, path, words[1], size, mtime)
        else:
            stray.append(path)
    if stray:
        files = several(len(stray), "file", "files")
        problems.append(
            f"{folder}: {files} in no class's folder, e.g. {printable(stray[0])}; each class has its own folder, or "
            f"a CSV of path,label names the classes (data.csv)"
        )
    if part == "labeled" and len(filled) == 1:
        ((name, inner),) = filled.items()
        if len(inner) > 1 and "" not in inner:
            problems.append(
                f"{folder}: the first folder is the class, '{printable(name)}', and its folders {some(sorted(inner))} "
                f"say nothing; move them up"
            )
    if part != "unlabeled":
        notes += _empty_classes(tree, folder, set(filled))


def _empty_classes(tree: Folder, folder: str, filled: set[str]) -> list[str]:
    """Return notes of the folders that would be classes if anything lay in them."""
    empty = [f"{folder}/{printable(name)}" for name in tree.folders(folder) if name not in filled]
    return [f"no image in {some(empty)}: no class is made of an empty folder"] if empty else []
