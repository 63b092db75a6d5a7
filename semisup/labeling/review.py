"""`semisup check`: labels that are likely wrong, pictures that are there twice, images like no other."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.data.entries import PARTS, several
from semisup.data.near import groups, thumbnails
from semisup.data.store import Watch, unwatched
from semisup.engine import resolve_device
from semisup.errors import SemisupError, raise_all
from semisup.files import folder_problems, folders_in_the_way, make_folder, write_atomically
from semisup.labeling.folder import Pictures, read_pictures
from semisup.labeling.seen import look, model_images
from semisup.labeling.sheet import Shown, sheet_html
from semisup.labeling.wrong import likely_wrong, odd_ones, out_of_fold
from semisup.text import csv_text, printable

__all__ = ["Reviewed", "review"]

FILES = ("check_labels.csv", "check_images.csv", "check.html")
"""What is written."""
LEAST = 2
"""Different pictures that a class needs, for the label of any of them to be predicted by the others."""


@dataclass(frozen=True)
class Reviewed:
    """What was found.

    Attributes:
        labels: images whose labels were looked at.
        wrong: labels that are likely wrong.
        copies: groups of near copies.
        conflicts: those groups with more than one class.
        leaks: those groups in more than one part of the data.
        odd: images like no other.
        files: what was written.
        notes: what a person should know.
    """

    labels: int
    wrong: int
    copies: int
    conflicts: int
    leaks: int
    odd: int
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def review(
    folder: Path,
    model: Path,
    out: Path,
    *,
    table: Path | None = None,
    shown: int = 100,
    cache: str | None = None,
    seed: int = 0,
    device: str = "auto",
    watch: Watch = unwatched,
) -> Reviewed:
    """Look over a folder's labels and images, and write what is found.

    `check_labels.csv` ranks every label, of training, val and test images, the least believable first;
    `check_images.csv` has near copies and odd ones out; `check.html` shows the first of them with fields to correct.

    Args:
        folder: see `semisup.labeling.folder.list_pictures`.
        model: folder of a finished stage: a classifier, or an encoder. Its own training labels are not looked at:
            labels are predicted from its features by those of other images.
        out: folder to write to, made if missing.
        table: a CSV of path,label[,split] in place of the folders.
        shown: most images on the page.
        cache: of the decoded images; None: ~/.cache/semisup/folders.
        seed: of the folds.
        device: auto, cpu, cuda or mps.
        watch: shows progress.

    Raises:
        SemisupError: no images, no model, or labels of fewer than two classes.
    """
    raise_all([*folder_problems([out]), *folders_in_the_way(out / name for name in FILES)], "out")
    pictures = read_pictures(folder, model_images(model), table, cache, watch)
    features = look(pictures, model, resolve_device(device), watch).features
    copies = groups(thumbnails(pictures.images))
    rows, probs, notes = _predicted(pictures, features, copies, seed)
    labels = pictures.labels[rows]
    trust = probs[np.arange(len(rows)), labels]
    wrong = likely_wrong(probs, labels)
    distance, odd = odd_ones(features)
    order = np.argsort(trust, kind="stable")
    ranked = [(int(rows[i]), int(probs[i].argmax()), float(trust[i]), bool(wrong[i])) for i in order]
    make_folder(out)
    contents = (
        _labels_table(pictures, ranked),
        _images_table(pictures, copies, distance, odd),
        _page(pictures, ranked[:shown]),
    )
    for name, text in zip(FILES, contents, strict=True):
        write_atomically(out / name, text.encode("utf-8", "surrogateescape"))
    return Reviewed(
        len(rows),
        int(wrong.sum()),
        len(copies),
        sum(len({pictures.labels[i] for i in group} - {-1}) > 1 for group in copies),
        sum(len({pictures.entries[i].part for i in group}) > 1 for group in copies),
        int(odd.sum()),
        tuple(out / name for name in FILES),
        (*pictures.notes, *notes),
    )


def _predicted(
    pictures: Pictures, features: NDArray[np.float32], copies: Sequence[Sequence[int]], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]], list[str]]:
    """Return the labeled rows whose labels the others can predict, their out-of-fold predictions, and notes."""
    labels = pictures.labels
    group = np.arange(len(labels))
    for same in copies:
        group[same] = same[0]
    counts = np.array([len(np.unique(group[labels == k])) for k in range(len(pictures.classes))])
    few = [printable(name) for name, count in zip(pictures.classes, counts, strict=True) if count < LEAST]
    rows = np.flatnonzero(np.append(counts >= LEAST, False)[labels])  # the last is that of -1
    if len(np.unique(labels[rows])) < 2:
        raise SemisupError(
            f"{pictures.root}: needs two classes with at least {LEAST} different labeled pictures each, to compare them"
        )
    notes = [f"not looked at, with one labeled picture in the class: {', '.join(few)}"] if few else []
    return rows, out_of_fold(features[rows], labels[rows], group[rows], seed), notes


def _labels_table(pictures: Pictures, ranked: Iterable[tuple[int, int, float, bool]]) -> str:
    header = ("path", "part", "label", "suggestion", "confidence_in_label", "likely_wrong")
    return _csv(
        header,
        (
            (*_names(pictures, row), pictures.classes[guess], f"{trust:.4f}", "yes" if wrong else "")
            for row, guess, trust, wrong in ranked
        ),
    )


def _images_table(
    pictures: Pictures,
    copies: Sequence[Sequence[int]],
    distance: NDArray[np.floating[Any]],
    odd: NDArray[np.bool_],
) -> str:
    """Write copies of two classes, then those in two parts, then other copies; then odd ones, oddest first."""
    found: list[tuple[str, ...]] = []
    kinds = [(_kind(pictures, group), group) for group in copies]
    for kind, group in sorted(kinds, key=lambda pair: KINDS.index(pair[0])):
        found += [(*_names(pictures, row), kind, pictures.entries[group[0]].path, "") for row in group]
    order = [row for row in np.argsort(-distance, kind="stable") if odd[row]]
    found += [(*_names(pictures, int(row)), "like no other", "", f"{distance[row]:.4f}") for row in order]
    return _csv(("path", "part", "label", "finding", "same_as", "distance"), found)


KINDS = ("near copies of two classes", "near copies in two parts", "near copies")


def _kind(pictures: Pictures, group: Sequence[int]) -> str:
    entries = [pictures.entries[row] for row in group]
    if len({entry.label for entry in entries} - {None}) > 1:
        return KINDS[0]
    return KINDS[1] if len({PARTS.index(entry.part) for entry in entries}) > 1 else KINDS[2]


def _names(pictures: Pictures, row: int) -> tuple[str, str, str]:
    entry = pictures.entries[row]
    return entry.path, entry.part, entry.label or ""


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([csv_text(cell) for cell in row] for row in rows)
    return text.getvalue()


def _page(pictures: Pictures, ranked: Sequence[tuple[int, int, float, bool]]) -> str:
    shown = [
        Shown(
            pictures.file(row),
            printable(pictures.entries[row].path),
            pictures.classes[guess],
            f"labeled {pictures.entries[row].label}, {trust:.0%} believable; looks like {pictures.classes[guess]}",
        )
        for row, guess, trust, _ in ranked
    ]
    lines = (
        f"The {several(len(shown), 'label that is', 'labels that are')} hardest to believe, most doubtful first.",
        "Correct a wrong one: type its class or press Enter for the suggestion; leave the right ones empty; save; then "
        "semisup label FOLDER --import FILE.",
    )
    return sheet_html("Labels to look over", lines, shown, pictures.classes)
