"""Label Studio: tasks with predictions out, annotations in. Its formats are plain JSON; the program is not needed.

Formats: https://labelstud.io/guide/tasks.html and https://labelstud.io/guide/export.html.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pydantic import BaseModel, TypeAdapter

from semisup._version import __version__
from semisup.data.entries import some
from semisup.data.table import is_label
from semisup.errors import SemisupError
from semisup.records import checked
from semisup.text import printable

__all__ = ["LOCAL_FILES", "labeling_interface", "none_notes", "read_export", "tasks"]

CONTROL, IMAGE = "label", "image"
"""Names of the choices and of the image in the labeling interface."""
LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves a folder of its own machine, below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


def labeling_interface(classes: Sequence[str]) -> str:
    """Return the XML to paste into a project's settings: an image, and its class by one click or key."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return (
        f'<View>\n  <Image name="{IMAGE}" value="$image"/>\n'
        f'  <Choices name="{CONTROL}" toName="{IMAGE}" choice="single" showInline="true">\n{choices}\n  </Choices>\n'
        f"</View>\n"
    )


def tasks(images: Sequence[tuple[str, str, float]], url: str = LOCAL_FILES) -> list[dict[str, Any]]:
    """Return tasks for Label Studio's import.

    Args:
        images: path below the folder, predicted class (empty: none) and its probability.
        url: what an image's address begins with, before its quoted path; a slash comes between, but behind `/` or `=`.
    """
    url = url if url.endswith(("/", "=")) else f"{url}/"
    return [
        {
            "data": {IMAGE: f"{url}{quote(os.fsencode(path))}", "path": path},
            "predictions": [_prediction(guess, confidence)] if guess else [],
        }
        for path, guess, confidence in images
    ]


def _prediction(guess: str, confidence: float) -> dict[str, Any]:
    result = {"from_name": CONTROL, "to_name": IMAGE, "type": "choices", "value": {"choices": [guess]}}
    return {"model_version": f"semisup {__version__}", "score": round(confidence, 4), "result": [result]}


class _Value(BaseModel):
    choices: list[str] | None = None


class _Result(BaseModel):
    from_name: str = ""
    value: _Value = _Value()


class _Annotation(BaseModel):
    was_cancelled: bool | None = False
    result: list[_Result] | None = None


class _Task(BaseModel):
    """A task of an export: JSON has `data` and `annotations`, JSON-MIN everything in one mapping."""

    data: dict[str, Any] | None = None
    annotations: list[_Annotation] | None = None
    path: str | None = None
    label: Any = None

    @property
    def image(self) -> str | None:
        """Its path, if it is one of ours."""
        path = self.path if self.data is None else self.data.get("path")
        return path if isinstance(path, str) else None

    @property
    def several(self) -> bool:
        """Whether it has an answer that is not one class: several, or choices under another name."""
        if self.data is None:
            return self.label is not None and not isinstance(self.label, str)
        given = [annotation.result or () for annotation in self.annotations or () if not annotation.was_cancelled]
        answers = [[each for each in result if each.value.choices or each.from_name != CONTROL] for result in given]
        return any(answer and all(_one_class(each) is None for each in answer) for answer in answers)

    def names(self) -> Iterator[str]:
        """Yield the class of each annotation that has one; some texts stand for none (`is_label`)."""
        if self.data is None and isinstance(self.label, str) and self.label.strip():
            yield self.label.strip()
        for annotation in self.annotations or ():
            for result in () if annotation.was_cancelled else annotation.result or ():
                if (name := _one_class(result)) is not None and name.strip():
                    yield name.strip()


def _one_class(result: _Result) -> str | None:
    choices = result.value.choices or ()
    return choices[0] if result.from_name == CONTROL and len(choices) == 1 else None


def none_notes(none: Mapping[str, int]) -> list[str]:
    """Say which answers, by how often they are there, stand for no label."""
    said = ", ".join(f"{count:,} '{printable(name)}'" for name, count in sorted(none.items()))
    return [f"answers that stand for no label, left as they were: {said}; call a class otherwise"] if said else []


_EXPORT: TypeAdapter[list[_Task]] = TypeAdapter(list[_Task])


def read_export(exported: Any, subject: str) -> tuple[dict[str, str], list[str]]:
    """Return path -> class of an export, JSON or JSON-MIN, and a sentence for what has an answer that is no class.

    Canceled annotations and tasks without one are left out.

    Args:
        exported: the parsed file.
        subject: what it is called in messages.

    Raises:
        SemisupError: it is no list of tasks with a `path`, as `tasks` gives them.
    """
    votes: dict[str, Counter[str]] = {}
    none: Counter[str] = Counter()
    found: list[_Task] = checked(_EXPORT, exported, f"{subject}: no export of Label Studio")
    for number, task in enumerate(found, 1):
        if task.image is None:
            raise SemisupError(f"{subject}: task {number} has no 'path' in its data; import the tasks of semisup label")
        names = list(task.names())
        votes.setdefault(task.image, Counter()).update(filter(is_label, names))
        none.update(name for name in names if not is_label(name))
    notes = none_notes(none)
    notes += [
        f"{path}: annotated as {' and '.join(sorted(said))}; left as it was"
        for path, said in votes.items()
        if len(said) > 1
    ]
    others = [task.image for task in found if task.image is not None and task.several]
    if others:
        notes.append(
            f"left as they were, annotated with other than one choice of '{CONTROL}', as label_studio.xml names them: "
            f"{some([printable(path) for path in others])}"
        )
    return {path: next(iter(said)) for path, said in votes.items() if len(said) == 1}, notes
