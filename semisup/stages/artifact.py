"""What a finished stage leaves behind: plain data files and a record that lists their checksums."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semisup.errors import SemisupError
from semisup.files import remove_torn, temporary_for, write_atomically
from semisup.records import (
    DIGEST,
    RECORD,
    digest,
    file_digest,
    finite,
    read_record,
    verify,
)

__all__ = ["RECORD", "Artifact", "finish", "finish_untrained", "read_artifact", "write_json"]


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
        remove_torn(folder)
        for name in _listed(folder) - set(self.record["files"]):
            (folder / name).unlink(missing_ok=True)
        for name in [*self.record["files"], RECORD]:
            target = folder / name
            temporary = temporary_for(target)
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
    write_atomically(path, (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())


def _listed(folder: Path) -> set[str]:
    """Names of the files that the record of a stage shown in `folder` lists; none without a record of ours."""
    try:
        return set(read_record(folder)["files"])
    except SemisupError:
        return set()


def finish(folder: Path, files: list[str], record: Mapping[str, Any]) -> Artifact:
    """Checksum `files` of `folder` and write the record that makes the stage a finished one."""
    content = {**record, "files": {name: file_digest(folder / name) for name in files}}
    written = json.loads(json.dumps(finite(content), allow_nan=False))
    written[DIGEST] = digest(written)
    write_json(folder / RECORD, written)
    return Artifact(folder, written)


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
    origins: Sequence[str] = (),
) -> Artifact:
    """Finish a stage that made no optimizer step; see `finish`.

    Args:
        folder: of the stage; its name is the fingerprint.
        files: names of those that it leaves.
        metrics: name -> number or list.
        name: of the stage.
        kind: of the stage.
        seconds: that its work took.
        images: how many a network has seen for that work.
        evaluation_seconds: what evaluation took on top.
        parameters: of the network that it evaluates.
        origins: weights that what it leaves was made by, see `StageContext.origins`.
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
        "origins": list(origins),
        "metrics": metrics,
    }
    return finish(folder, files, record)


def read_artifact(folder: Path) -> Artifact | None:
    """Read a finished stage of a store, or None where there is none.

    Raises:
        SemisupError: a file of it is missing or not what was written, or it is another stage than the folder's name
            says.
    """
    if not (folder / RECORD).exists():
        return None
    try:
        record = read_record(folder)
        if record["fingerprint"] != folder.name:
            raise SemisupError(f"{folder / RECORD}: the record of another stage, '{record['fingerprint']}'")
        verify(folder, record)
    except SemisupError as error:
        raise SemisupError(f"{error}; delete {folder} to run the stage again") from error
    return Artifact(folder, record)
