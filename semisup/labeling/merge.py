"""Labels that a person has given, back into a table that `data.csv` reads."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from semisup.data.entries import Entry, Listing, some
from semisup.data.table import is_label, read_labels
from semisup.errors import SemisupError, near, raise_all
from semisup.files import write_atomically
from semisup.labeling.label_studio import none_notes, read_export
from semisup.records import read_json
from semisup.text import from_csv_text, printable

__all__ = ["Merged", "merge", "not_taken_back", "read_answers", "write_labels"]

LONGEST = 255
"""Letters of a class's name, as of a folder's."""


@dataclass(frozen=True)
class Merged:
    """All images of a folder with old and new labels.

    Attributes:
        entries: every image.
        new: how many have a label that had none.
        changed: how many have another label than before.
        notes: what a person should look at.
    """

    entries: list[Entry]
    new: int
    changed: int
    notes: tuple[str, ...]


def read_answers(file: Path, root: Path) -> tuple[dict[str, str], list[str]]:
    """Return path -> class of a filled CSV or of Label Studio's export (JSON, JSON-MIN, CSV), and notes.

    Rows without a label are left out, and so are those whose label stands for none (`NA`, -1 ...), which a note tells.

    Raises:
        SemisupError: the file cannot be read, is of another form, or gives one image two labels.
    """
    labels, notes = read_export(read_json(file), str(file)) if file.suffix.lower() == ".json" else _rows(file, root)
    if not labels and not notes:
        notes.append(f"{file}: has no label in it, that is, in a column 'label' or in Label Studio's choices 'label'")
    return labels, notes


def _rows(file: Path, root: Path) -> tuple[dict[str, str], list[str]]:
    """As `read_answers`, of a table."""
    if file.suffix.lower() not in (".csv", ".tsv"):
        raise SemisupError(f"--import: {file} must end in .csv, .tsv or .json")
    labels: dict[str, str] = {}
    problems: list[str] = []
    notes: list[str] = []
    none: Counter[str] = Counter()
    for line, path, label in read_labels(file, root):
        if not is_label(label):
            none.update([label.strip()] if label.strip() else [])
            continue
        if label.startswith('{"choices"'):  # as Label Studio's CSV has several
            notes.append(f"line {line}: {printable(path)} is annotated with several classes; left as it was")
            continue
        label = label.strip()
        if labels.setdefault(path, label) != label:
            problems.append(f"line {line}: {printable(path)} is '{label}' here and '{labels[path]}' before")
    raise_all(problems, str(file))
    return labels, [*notes, *none_notes(none)]


def merge(listing: Listing, answers: dict[str, str], subject: str) -> Merged:
    """Return a folder's images with the answers as their labels; images of val and test keep their part.

    Args:
        listing: of the folder.
        answers: path -> class.
        subject: the file that they came from.

    Raises:
        SemisupError: a path is not one of the folder's images, or a label is no name for a class.
    """
    known = {entry.path for entry in listing.entries}
    paths, classes = _written(known), _written(listing.classes)
    found = {_meant(path, paths): _meant(label, classes) for path, label in answers.items()}
    raise_all(_no_names(set(found.values()) - set(listing.classes)), subject)
    unknown = [printable(path) for path in found if path not in known]
    if unknown:
        raise SemisupError(f"{subject}: not images of {listing.root}: {some(unknown)}{_near(unknown[0], known)}")
    entries, new, changed = [], 0, 0
    for entry in listing.entries:
        label = found.get(entry.path, entry.label)
        new += entry.label is None and label is not None
        changed += entry.label is not None and label != entry.label
        entries.append(Entry(entry.part, entry.path, label, entry.bytes, entry.mtime))
    return Merged(entries, new, changed, tuple(_new_classes(listing, found)))


def not_taken_back(file: Path, root: Path, listing: Listing) -> int:
    """Return how many answers of a file are not yet labels of a folder's images.

    Args:
        file: as `read_answers` takes it.
        root: the folder.
        listing: of it.

    Raises:
        SemisupError: the file cannot be read, or is of another form.
    """
    labels = {entry.path: entry.label for entry in listing.entries}
    answers, _ = read_answers(file, root)
    paths, classes = _written(labels), _written(listing.classes)
    return sum(labels.get(_meant(path, paths)) != _meant(label, classes) for path, label in answers.items())


def _written(names: Collection[str]) -> dict[str, str]:
    """Return how names of files or classes may be written -> the names: the page shows bytes that are no text so."""
    return {printable(name): name for name in names} | {name: name for name in names}


def _meant(cell: str, written: Mapping[str, str]) -> str:
    """Return which name a cell is, or else the cell, without the quote that was put in front for spreadsheets."""
    plain = from_csv_text(cell)
    return written.get(cell, written.get(plain, plain))


def _no_names(labels: Iterable[str]) -> list[str]:
    """Return a problem for each label that cannot be a class: too long, or with letters that do not print."""
    return [
        f"a class must have a name of 1 to {LONGEST} letters that print, not '{printable(label)[:LONGEST]}'"
        for label in sorted(labels)
        if not 0 < len(label) <= LONGEST or not label.isprintable()
    ]


def _near(path: str, known: set[str]) -> str:
    return near(path, known) if len(known) <= 5000 else ""


def _new_classes(listing: Listing, found: dict[str, str]) -> list[str]:
    """Return a note for each class that the folder had not; of a typing error, what may be meant."""
    notes = []
    for name in sorted(set(found.values()) - set(listing.classes)) if listing.classes else ():
        notes.append(f"class '{printable(name)}' is new{near(name, listing.classes)}")
    return notes


def write_labels(merged: Merged, file: Path) -> None:
    """Write path,label,split of every image; unlabeled ones have an empty label.

    The cells are as they are, without a quote before what a spreadsheet takes for a formula: `data.csv` reads them.

    Raises:
        SemisupError: a class is called as in tables what has no label, and whoever reads them would lose it.
    """
    lost = sorted({entry.label for entry in merged.entries if entry.label is not None and not is_label(entry.label)})
    raise_all(
        [f"class '{name}' stands for no label in a table; give its folder another name" for name in lost], f"{file}"
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    writer.writerows((entry.path, entry.label or "", entry.part) for entry in merged.entries)
    write_atomically(file, text.getvalue().encode("utf-8", "surrogateescape"))
