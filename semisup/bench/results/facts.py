"""What a suite's tables need beyond `runs.csv`: its names, targets, classes and where the runs were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from semisup.errors import SemisupError
from semisup.records import read_json

__all__ = ["FACTS", "SuiteFacts", "read_facts"]

FACTS = "suite.json"
"""The file of a result folder that holds them."""


class SuiteFacts(BaseModel):
    """The facts of a finished suite; with the rows of `runs.csv` all its tables and pages can be made again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    """Its name."""
    command: str
    """What made the runs."""
    baselines: list[str]
    """Entries that the others are compared with."""
    entries: list[str]
    """All entries, in the suite's order."""
    targets: list[float]
    """Accuracies in (0, 1] whose labels needed are asked for."""
    classes: list[str]
    """Names of the classes."""
    num_test: int
    """Images in the test set."""
    class_ratio: float = 1.0
    """Of the largest class to the smallest, of the test images or a budget's labels, whichever is the greatest."""
    provenance: dict[str, Any]
    """Version, commit, machines, data and their hash."""
    settings: str
    """The suite's own words on its settings."""
    saved: dict[str, Any]
    """What the stage cache saved."""


def read_facts(folder: Path) -> SuiteFacts:
    """Read the facts of a result folder.

    Args:
        folder: of a suite, with `suite.json`.

    Raises:
        SemisupError: the file is missing or does not hold a suite's facts.
    """
    path = folder / FACTS
    try:
        return SuiteFacts.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole file"
        raise SemisupError(f"{path}: does not hold a suite's facts ({key}: {first['msg']})") from error
