"""Image files with their classes and parts, whoever named them: folders or a CSV."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from semisup.data.remote import Root
from semisup.errors import near, raise_all
from semisup.text import printable

__all__ = ["PARTS", "Entry", "Listing", "class_notes", "like", "make_listing", "several", "some"]

PARTS = ("train", "val", "test")
"""In the order in which a store holds them."""
_SHOWN = 5  # names in a message
_NO_CLASS = {"?", "-", "--", "n/a", "na", "nan", "nat", "no label", "no_label", "nolabel", "none", "null", "#n/a", "-1"}
_NO_CLASS |= {"-2", "-99", "-100", "-999", "missing", "undefined", "unknown", "unlabeled", "unlabelled", "tbd", "todo"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file.

    Attributes:
        part: of `PARTS`.
        path: below the root, with `/`, or absolute.
        label: its class, or None.
        bytes: size of the file; -1 if it is not there.
        mtime: time of its last change, nanoseconds; behind an address a number that is another one when it changes.
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

    root: Root
    entries: list[Entry]
    classes: list[str]
    notes: tuple[str, ...] = ()


def make_listing(root: Root, entries: list[Entry], problems: list[str], notes: Sequence[str]) -> Listing:
    """Sort the files and check their classes.

    Raises:
        SemisupError: the problems so far and those of the classes.
    """
    classes = sorted({e.label for e in entries if e.part == "train" and e.label is not None})
    if len(classes) < 2:
        there = f"only '{printable(classes[0])}'" if classes else "none"
        problems.append(f"needs labeled training images of at least two classes, and there is {there}")
    else:
        for part in PARTS[1:]:
            for label in sorted({e.label or "" for e in entries if e.part == part} - set(classes)):
                unseen = f"class '{printable(label)}' has no labeled training image"
                problems.append(f"{part}: {unseen}{like(label, classes)}")
    raise_all(problems, f"data.path: {root}")
    entries.sort(key=lambda e: (PARTS.index(e.part), e.path))
    return Listing(root, entries, classes, (*notes, *class_notes(classes)))


def like(label: str, classes: Sequence[str]) -> str:
    """Return which class may be meant by a name that is none, if one is near, as the end of a sentence."""
    for name in classes:
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", label):
            return f"; {name!a} looks the same and has: write its accents in the same way, not as {label!a}"
    return printable(near(label, classes))


def class_notes(classes: Sequence[str]) -> list[str]:
    """Say which names of classes may stand for no label, and which may be one class written in two ways."""
    notes = []
    if none := [f"'{printable(name)}'" for name in classes if name.strip().casefold() in _NO_CLASS]:
        notes.append(
            f"{some(none)} may stand for no label, and is read as a class; if it is none, its images belong in the "
            f"folder 'unlabeled', or its name in data.unlabeled_values"
        )
    alike: dict[str, list[str]] = {}
    for name in classes:
        letters = unicodedata.normalize("NFC", name)
        seen = "".join(letter for letter in letters if unicodedata.category(letter) != "Cf")  # no zero-width space
        key = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", seen).casefold()).strip()
        if re.fullmatch(r"[0-9]+(\.0*)?", key):  # 1, 01 and 1.0
            key = key.split(".")[0].lstrip("0")
        alike.setdefault(key, []).append(f"'{printable(name)}'" if seen == name else ascii(name))
    notes += [
        f"{' and '.join(names)} are read as {len(names)} classes, although they differ in nothing but capitals, "
        f"spaces, characters without width or how letters or numbers are written"
        for names in alike.values()
        if len(names) > 1
    ]
    return notes


def several(number: int, one: str, many: str) -> str:
    """Return a number and what there is so many of: `1 file is`, `2 files are`."""
    return f"{number:,} {one if number == 1 else many}"


def some(words: Sequence[str]) -> str:
    """Return the first few of some words, and how many more there are."""
    more = f" and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more
