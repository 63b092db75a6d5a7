"""The record of a run: one JSON object per line in ``events.jsonl``, appended as things happen.

Everything else in this package only reads that file, so no tracking server can slow a run down or lose part of it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semisup.errors import SemisupError

__all__ = ["EVENTS_FILE", "Event", "EventLog", "iter_events"]

EVENTS_FILE = "events.jsonl"

Event = dict[str, Any]
"""One line: ``event`` (its kind), ``id`` (unique), ``time`` (seconds since 1970), and what the kind carries."""


class EventLog:
    """Append-only record of what a run does, in ``folder/events.jsonl``.

    Every event reaches the operating system before the call returns, so ``kill -9`` loses none (a power cut may lose
    the last seconds: an fsync per event would cost more than it is worth). One call costs about 50 microseconds.

    Args:
        folder: where the file lives; made if missing. A line torn by an earlier crash is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.path = self.folder / EVENTS_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stages: set[str] = set()
        if self.path.exists():
            _cut_torn_line(self.path)

    def run_start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin a run. An earlier run in the same file without a `run_end` counts as killed, and this one continues it.

        Args:
            name: the recipe's name.
            params: settings, nested or flat; shown as ``a.b.c``.
            tags: facts to search by, e.g. the data hash.
        """
        self._stages.clear()
        self._append("run_start", name=name, params=params, tags=tags)

    def stage_start(self, stage: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin a stage of the current run; arguments as for `run_start`."""
        self._stages.add(stage)
        self._append("stage_start", stage=stage, params=params, tags=tags)

    def metrics(self, stage: str | None, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of one step; NaN and infinities are kept. `stage` None means the run as a whole."""
        self._append(
            "metrics", stage=self._known(stage), step=int(step), values={k: float(v) for k, v in values.items()}
        )

    def artifact(self, stage: str | None, path: Path, artifact_path: str) -> None:
        """Record a file or folder to be kept with a stage, or with the run if `stage` is None.

        The file is read when it is uploaded, which may be much later: it must not be moved or changed.

        Args:
            stage: a started stage, or None.
            path: the file or folder.
            artifact_path: folder it goes to among the run's artifacts, with ``/`` between names; ``""`` for the top.
        """
        if artifact_path.startswith("/") or ".." in artifact_path.split("/"):
            raise ValueError(f"artifact_path must stay within the run's artifacts, not {artifact_path!r}")
        self._append("artifact", stage=self._known(stage), path=self._portable(path), artifact_path=artifact_path)

    def model(self, stage: str, path: Path, loader_module: str, example: Path, requirements: list[str]) -> None:
        """Record a finished model, to be loadable by ``mlflow.pyfunc``.

        The model is loaded and run once on the example, here and not in the uploading thread: building a network may
        draw from torch's global random generator, which a thread beside the training must never do. The generator is
        put back afterwards.

        Args:
            stage: a started stage.
            path: the model's folder, as `loader_module` reads it.
            loader_module: name of a module with ``_load_pyfunc(folder: str)``, whose result has
                ``predict(uint8 array (n, H, W, C)) -> float32 array (n, classes)``.
            example: a ``.npy`` file of uint8 images (n, H, W, C).
            requirements: pip requirements of the loader.

        Raises:
            SemisupError: the example or the loader's answer has another shape or type.
        """
        import torch

        images = np.load(example, allow_pickle=False)
        if images.ndim != 4 or images.dtype != np.uint8:
            raise SemisupError(
                f"{example}: a model's example must be uint8 images (n, H, W, C), not {images.dtype} {images.shape}"
            )
        with torch.random.fork_rng(devices=[]):
            answer = np.asarray(importlib.import_module(loader_module)._load_pyfunc(str(path)).predict(images))
        if answer.dtype != np.float32 or answer.ndim != 2 or len(answer) != len(images):
            raise SemisupError(
                f"{loader_module}: predict must return float32 ({len(images)}, classes) for {example}, "
                f"not {answer.dtype} {answer.shape}"
            )
        self._append(
            "model",
            stage=self._known(stage),
            path=self._portable(path),
            loader_module=loader_module,
            example=self._portable(example),
            requirements=requirements,
            outputs=answer.shape[1],
        )

    def stage_end(self, stage: str, status: str, metrics: Mapping[str, float]) -> None:
        """End a stage.

        Args:
            stage: a started stage.
            status: ``"failed"`` or ``"killed"``, in any case; any other word (trained, reused) is a success.
            metrics: its final numbers.
        """
        self._append(
            "stage_end",
            stage=self._known(stage),
            status=status,
            metrics={k: float(v) for k, v in metrics.items()},
        )

    def run_end(self, status: str) -> None:
        """End the run, and every stage of it that has not ended; `status` as for `stage_end`."""
        self._append("run_end", status=status)

    def _known(self, stage: str | None) -> str | None:
        if stage is not None and stage not in self._stages:
            raise ValueError(f"stage {stage!r} has not been started in {self.path}")
        return stage

    def _portable(self, path: Path) -> str:
        """Path relative to the folder where possible, so that the folder can be moved before a replay."""
        path = path.resolve()
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)

    def _append(self, kind: str, **fields: Any) -> None:
        event = {"event": kind, "id": uuid.uuid4().hex, "time": time.time(), **fields}
        line = json.dumps(_plain(event), allow_nan=False, ensure_ascii=False) + "\n"
        # Opened anew so that there is no handle to leak or to flush at exit.
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise SemisupError(f"{self.path}: cannot be written ({error.strerror})") from error


def iter_events(path: Path, offset: int) -> Iterator[tuple[Event, int]]:
    """Yield each complete event from byte `offset` on, with the offset just behind it; a torn last line is left out.

    Raises:
        SemisupError: a complete line is not an event.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
            except ValueError as error:
                raise SemisupError(f"{path}: the line at byte {offset} is not an event: {error}") from None
            offset += len(line)
            yield event, offset


def _cut_torn_line(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SemisupError(f"{path}: cannot be read ({error.strerror})") from error
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)


def _plain(value: Any) -> Any:
    """`value` as something JSON can hold: non-finite floats as "NaN", "inf", "-inf" (which ``float()`` reads back)."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)
