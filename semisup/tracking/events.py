"""The record of a run: one JSON object per line in `events.jsonl`, appended as things happen.

Everything else in this package only reads that file, so no tracking server can slow a run down or lose part of it.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from semisup.errors import SemisupError, first_line, refuse_special

__all__ = ["EVENTS_FILE", "Event", "EventLog", "iter_events"]

EVENTS_FILE = "events.jsonl"


def _within(artifact_path: str) -> str:
    """Return a folder's name among a run's artifacts, if it stays among them.

    Raises:
        ValueError: it does not.
    """
    if artifact_path.startswith("/") or ".." in artifact_path.split("/"):
        raise ValueError(f"artifact_path must stay within the run's artifacts, not {artifact_path!r}")
    return artifact_path


Event = dict[str, Any]
"""One line: `event` (its kind), `id` (unique), `writer` (of the log that wrote it), `time` (seconds since
1970), and what the kind carries."""


class _Line(BaseModel):
    """What every event has."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, Field(pattern=r"^[0-9a-zA-Z]{1,64}$")]
    writer: str = ""
    time: Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]


LAST_STEP = 2**63
"""MLflow's own limit: a step is below it."""
Step = Annotated[int, Field(ge=0, lt=LAST_STEP)]


class _RunStart(_Line):
    event: Literal["run_start"]
    name: str
    params: dict[str, Any]
    tags: dict[str, Any]


class _StageStart(_Line):
    event: Literal["stage_start"]
    stage: str
    params: dict[str, Any]
    tags: dict[str, Any]


class _Metrics(_Line):
    event: Literal["metrics"]
    stage: str | None
    step: Step
    values: dict[str, float]


class _File(_Line):
    event: Literal["artifact"]
    stage: str | None
    path: str
    artifact_path: Annotated[str, AfterValidator(_within)]


class _Model(_Line):
    event: Literal["model"]
    stage: str
    path: str
    example: str
    outputs: Annotated[int, Field(ge=1, lt=2**31)]


class _FinalModel(_Line):
    event: Literal["final_model"]
    stage: str


class _Dataset(_Line):
    event: Literal["dataset"]
    stage: str | None
    name: str
    split: Literal["training", "validation", "test"]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{8,128}$")]
    images: Annotated[int, Field(ge=0, lt=2**63)]
    facts: dict[str, str | int]


class _StageEnd(_Line):
    event: Literal["stage_end"]
    stage: str
    status: str
    metrics: dict[str, float]


class _RunEnd(_Line):
    event: Literal["run_end"]
    status: str


_EVENT: TypeAdapter[_Line] = TypeAdapter(
    Annotated[
        _RunStart | _StageStart | _Metrics | _File | _Model | _FinalModel | _Dataset | _StageEnd | _RunEnd,
        Field(discriminator="event"),
    ]
)


def _reason(error: ValueError) -> str:
    """Return what is wrong with a line, in one line."""
    if not isinstance(error, ValidationError):
        return first_line(error)
    found = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}".removeprefix(": ")


class EventLog:
    """Append-only record of what a run does, in `folder/events.jsonl`.

    Every event reaches the operating system before the call returns, so `kill -9` loses none (a power cut may lose
    the last seconds: an fsync per event would cost more than it is worth). One call costs about 50 microseconds.

    Args:
        folder: where the file lives; made if missing. A line torn by an earlier crash is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.path = self.folder / EVENTS_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stages: set[str] = set()
        self._writer = uuid.uuid4().hex
        if self.path.exists():
            _cut_torn_line(self.path)

    def run_start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin a run. An earlier run in the same file without a `run_end` counts as killed, and this one continues it.

        Args:
            name: the recipe's name.
            params: settings, nested or flat; shown as `a.b.c`.
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
            artifact_path: folder it goes to among the run's artifacts, with `/` between names; `""` for the top.
        """
        where = _within(artifact_path)
        self._append("artifact", stage=self._known(stage), path=self._portable(path), artifact_path=where)

    def model(self, stage: str, path: Path, example: Path, outputs: int) -> None:
        """Record a finished model, to be loadable by `mlflow.pyfunc`.

        Args:
            stage: a started stage.
            path: folder of a finished stage.
            example: a `.npy` file of uint8 images (n, H, W, C).
            outputs: number of classes.
        """
        self._append(
            "model",
            stage=self._known(stage),
            path=self._portable(path),
            example=self._portable(example),
            outputs=outputs,
        )

    def final_model(self, stage: str) -> None:
        """Record that the run's result is the model of a stage, which `model` was told of."""
        self._append("final_model", stage=self._known(stage))

    def dataset(
        self, stage: str | None, name: str, split: str, digest: str, images: int, facts: Mapping[str, str | int]
    ) -> None:
        """Record what a run, or a stage of it, reads.

        Args:
            stage: a started stage; None: the run as a whole.
            name: of the data, without a path.
            split: training, validation or test.
            digest: hexadecimal hash of the data.
            images: how many.
            facts: anything else that tells them apart, e.g. the hash of the labels' draw.
        """
        self._append(
            "dataset",
            stage=self._known(stage),
            name=name,
            split=split,
            digest=digest,
            images=images,
            facts=dict(facts),
        )

    def stage_end(self, stage: str, status: str, metrics: Mapping[str, float]) -> None:
        """End a stage.

        Args:
            stage: a started stage.
            status: `"failed"` or `"killed"`, in any case; any other word (trained, reused) is a success.
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
        """Return a path relative to the folder, so that the folder can be moved before a replay."""
        path = path.resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(f"{path}: only what lies in {self.folder} can be sent to MLflow")
        return path.relative_to(self.folder).as_posix()

    def _append(self, kind: str, **fields: Any) -> None:
        event = {"event": kind, "id": uuid.uuid4().hex, "writer": self._writer, "time": time.time(), **fields}
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
        SemisupError: a complete line is not an event, or the log is no file.
    """
    if not path.exists():
        return
    refuse_special(path)
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                event = _EVENT.validate_json(line).model_dump()
            except ValueError as error:
                raise SemisupError(
                    f"{path}: the line at byte {offset} is not an event: {_reason(error)}; take that line out, or move "
                    "the file away, and what it tells of the training with it"
                ) from None
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
    """`value` as something JSON can hold: non-finite floats as "NaN", "inf", "-inf" (which `float()` reads back).

    Half characters, which names of files that are not UTF-8 have, are spelled out: pydantic reads no JSON with them.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)
