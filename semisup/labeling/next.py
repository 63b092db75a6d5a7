"""`semisup label`: the images to label next, as a table, a page and tasks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semisup.data.near import thumbnails
from semisup.data.store import Watch, unwatched
from semisup.data.table import is_label
from semisup.engine import resolve_device
from semisup.errors import SemisupError, raise_all
from semisup.files import folder_problems, folders_in_the_way, make_folder, write_atomically
from semisup.labeling.choose import STRATEGIES, Choice, Question, choose, predictions, resolve
from semisup.labeling.folder import Pictures, list_pictures, read_pictures
from semisup.labeling.label_studio import LOCAL_FILES, labeling_interface, tasks
from semisup.labeling.merge import not_taken_back
from semisup.labeling.seen import Seen, look, model_images
from semisup.labeling.sheet import Shown, sheet_html
from semisup.text import csv_text, printable

__all__ = ["TABLE", "Asked", "LabelOptions", "label_next"]

TABLE = "to_label.csv"
"""The file of what is asked for that a person fills in."""
FILES = (TABLE, "to_label.html", "label_studio.json", "label_studio.xml")
"""All that is written."""


@dataclass(frozen=True)
class LabelOptions:
    """What is asked for besides the folder and the model.

    Attributes:
        n: images to label.
        strategy: a key of `STRATEGIES`.
        also: more classifiers, whose predictions count as much; for disagreement.
        table: a CSV of path,label[,split] in place of the folders.
        classes: names to offer besides those of the folder or the model.
        url: what images' addresses in Label Studio begin with.
        cache: folder of the decoded images; None: ~/.cache/semisup/folders.
        seed: of clusters and random choices.
        device: auto, cpu, cuda or mps.
    """

    n: int = 100
    strategy: str = "auto"
    also: tuple[Path, ...] = ()
    table: Path | None = None
    classes: tuple[str, ...] = ()
    url: str = LOCAL_FILES
    cache: str | None = None
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Asked:
    """What came of it.

    Attributes:
        strategy: what was done.
        chosen: images that were written.
        labeled: images that have labels.
        candidates: images that could have been chosen.
        copies: images passed over as nearly equal to a chosen or labeled one.
        files: what was written.
        notes: what a person should know.
    """

    strategy: str
    chosen: int
    labeled: int
    candidates: int
    copies: int
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def label_next(
    folder: Path, model: Path, out: Path, options: LabelOptions | None = None, watch: Watch = unwatched
) -> Asked:
    """Choose the unlabeled images of a folder that are worth labeling, and write them in three forms.

    `to_label.csv` (path, label to fill in, suggestion, confidence), `to_label.html` (the images, with fields),
    `label_studio.json` and `label_studio.xml` (tasks and the labeling interface). Val and test images are never chosen.

    Args:
        folder: see `semisup.labeling.folder.list_pictures`.
        model: folder of a finished stage: a classifier, or an encoder.
        out: folder to write to, made if missing.
        options: what else is asked for.
        watch: shows progress.

    Raises:
        SemisupError: no images, no model, nothing left to label, a strategy that lacks predictions, a class whose name
            stands for no label, or labels filled in at `out` that would be lost.
    """
    options = LabelOptions() if options is None else options
    raise_all([*folder_problems([out]), *folders_in_the_way(out / name for name in FILES)], "out")
    none = [name for name in options.classes if not is_label(name)]
    raise_all([f"'{name}' stands for no label in a table; call the class otherwise" for name in none], "--classes")
    _refuse_lost(out / TABLE, folder, options.table)
    pictures = read_pictures(folder, model_images(model), options.table, options.cache, watch)
    question, classes = _question(pictures, model, options, watch)
    if not question.candidates.any():
        why = "".join(f"; {note}" for note in pictures.notes)
        raise SemisupError(f"{folder}: every image has a label; nothing is left to choose{why}")
    strategy = resolve(options.strategy, question)
    chosen, copies = choose(question, options.n, strategy, thumbnails(pictures.images))
    words = f"{len(chosen):,} of {int(question.candidates.sum()):,} images, by {strategy}: {STRATEGIES[strategy]}."
    again = (f"{out / TABLE}: the list that was there is replaced",) if (out / TABLE).exists() else ()
    files = _write(out, pictures, chosen, classes, words, options.url)
    labeled, candidates = len(question.labeled), int(question.candidates.sum())
    return Asked(strategy, len(chosen), labeled, candidates, copies, files, (*pictures.notes, *again))


def _refuse_lost(filled: Path, folder: Path, table: Path | None) -> None:
    """Refuse to write over a table that a person has filled in, unless the folder has its labels."""
    lost = not_taken_back(filled, folder, list_pictures(folder, table)) if filled.exists() else 0
    if lost:
        raise SemisupError(
            f"{filled}: {lost:,} labels filled in there are not yet among those of {table or folder} and would be "
            f"lost; take them back with --import (then read them with --csv), or name another folder with --out"
        )


def _question(pictures: Pictures, model: Path, options: LabelOptions, watch: Watch) -> tuple[Question, list[str]]:
    """Return what there is to choose from, and the names of the classes."""
    device = resolve_device(options.device)
    seen = look(pictures, model, device, watch)
    labels = np.where(pictures.training, pictures.labels, -1)
    if seen.probs is None:
        if options.also:
            raise SemisupError(f"--also: goes with a classifier, and {model} is an encoder; name a classifier first")
        classes = list(dict.fromkeys([*pictures.classes, *options.classes]))
        members = predictions(seen.features, labels, len(classes), options.seed)
    else:
        classes, members = seen.classes, [seen.probs, *_others(pictures, model, seen, options, watch)]
        number = {
            name: k for k, name in enumerate(classes)
        }  # classes of the folder that the model does not know go last
        order = [number.setdefault(name, len(number)) for name in pictures.classes]
        labels = np.where(labels >= 0, np.array([*order, -1])[labels], -1)
        classes = list(dict.fromkeys([*number, *options.classes]))
    candidates = pictures.training & (labels < 0)
    width = max([len(classes), *(each.shape[1] for each in members)], default=1)
    members = [np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in members]
    return Question(seen.features, labels, candidates, members, width, options.seed), classes


def _others(pictures: Pictures, model: Path, seen: Seen, options: LabelOptions, watch: Watch) -> list[np.ndarray]:
    """Return the predictions of the other classifiers.

    Raises:
        SemisupError: one classifies nothing, takes images of another size, or has other classes.
    """
    found = []
    for other in options.also:
        theirs = look(pictures, other, resolve_device(options.device), watch)
        if model_images(other) != model_images(model):
            raise SemisupError(f"--also: {other} takes images of another size than {model}")
        if theirs.probs is None or theirs.classes != seen.classes:
            raise SemisupError(f"--also: {other} must be a classifier of the classes of {model}")
        found.append(theirs.probs)
    return found


def _write(
    out: Path, pictures: Pictures, chosen: Sequence[Choice], classes: Sequence[str], words: str, url: str
) -> tuple[Path, ...]:
    make_folder(out)
    paths = [pictures.entries[choice.row].path for choice in chosen]
    guesses = [classes[choice.guess] if choice.guess >= 0 else "" for choice in chosen]
    confidences = [choice.confidence for choice in chosen]
    triples = list(zip(paths, guesses, confidences, strict=True))
    lines = (words, "Type a class or press Enter for the suggestion; save; then semisup label FOLDER --import FILE.")
    shown = [
        Shown(pictures.file(choice.row), printable(path), guess, f"{guess} {confidence:.0%}" if guess else "")
        for choice, (path, guess, confidence) in zip(chosen, triples, strict=True)
    ]
    contents = (
        _csv(triples),
        sheet_html("Images to label", lines, shown, classes),
        json.dumps(tasks(triples, url), indent=1),
        labeling_interface(classes),
    )
    for name, text in zip(FILES, contents, strict=True):
        write_atomically(out / name, text.encode("utf-8", "surrogateescape"))
    return tuple(out / name for name in FILES)


def _csv(rows: Sequence[tuple[str, str, float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "suggestion", "confidence"))
    writer.writerows(
        (csv_text(path), "", csv_text(guess), f"{confidence:.4f}" if guess else "") for path, guess, confidence in rows
    )
    return text.getvalue()
