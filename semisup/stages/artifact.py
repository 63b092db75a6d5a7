"""What a finished stage leaves behind: plain data files and a record that lists their checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semisup.errors import SemisupError
from semisup.files import write_atomically

__all__ = ["RECORD", "Artifact", "finish", "finish_untrained", "read_artifact", "write_json"]

RECORD = "stage.json"
"""Written last: a folder that has it holds a finished stage."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder and its record."""

    folder: Path
    record: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that could have changed this result."""
        return str(self.record["fingerprint"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Name -> number or list; what could not be measured is None."""
        metrics: dict[str, Any] = self.record["metrics"]
        return metrics

    def link_into(self, folder: Path) -> None:
        """Show the artifact's files in `folder` too: hard links where the file system has them, else copies.

        Files of a stage that was shown there before and that this one lacks go: they would be taken for its own.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in _listed(folder / RECORD) - set(self.record["files"]):
            (folder / name).unlink(missing_ok=True)
        for name in [*self.record["files"], RECORD]:
            target, temporary = folder / name, folder / f".{name}.{os.getpid()}.tmp"
            if target.exists() and target.samefile(self.folder / name):
                continue  # linked before; renaming a link onto its own file would leave both names
            temporary.unlink(missing_ok=True)
            try:
                os.link(self.folder / name, temporary)
            except OSError:  # another file system, or one without links
                shutil.copy2(self.folder / name, temporary)
            temporary.replace(target)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON atomically; NaN and infinities become null."""
    write_atomically(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _listed(record: Path) -> set[str]:
    """Names of the files that a stage's record lists; none where there is no readable record."""
    try:
        return set(json.loads(record.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(folder: Path, files: list[str], record: Mapping[str, Any]) -> Artifact:
    """Checksum `files` of `folder` and write the record that makes the stage a finished one."""
    written = {**record, "files": {name: _sha256(folder / name) for name in files}}
    write_json(folder / RECORD, written)
    return Artifact(folder, json.loads((folder / RECORD).read_text(encoding="utf-8")))


def finish_untrained(
    folder: Path,
    files: list[str],
    metrics: Mapping[str, Any],
    *,
    name: str,
    kind: str,
    seconds: float,
    images: int,
    evaluation_seconds: float = 0.0,
    parameters: int = 0,
) -> Artifact:
    """:func:`finish` a stage that made no optimizer step.

    Args:
        folder: of the stage; its name is the fingerprint.
        files: names of those that it leaves.
        metrics: name -> number or list.
        name: of the stage.
        kind: of the stage.
        seconds: that its work took.
        images: how many a network has seen for that work.
        evaluation_seconds: what judging took beside it.
        parameters: of the network that it judges.
    """
    record = {
        "name": name,
        "method": kind,
        "fingerprint": folder.name,
        "steps": 0,
        "seconds": seconds,
        "evaluation_seconds": evaluation_seconds,
        "images_per_second": images / seconds,
        "parameters": parameters,
        "loaded": None,
        "metrics": metrics,
    }
    return finish(folder, files, record)


def read_artifact(folder: Path) -> Artifact | None:
    """Read a finished stage, or None where there is none.

    Raises:
        SemisupError: a file of it is missing or not what was written.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files = dict(record["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise SemisupError(f"{path}: damaged stage record ({error}); delete {folder} to run the stage again") from error
    for name, digest in files.items():
        if not (folder / name).exists() or _sha256(folder / name) != digest:
            raise SemisupError(f"{folder / name}: missing or damaged; delete {folder} to run the stage again")
    return Artifact(folder, record)
