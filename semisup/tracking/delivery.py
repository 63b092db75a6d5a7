"""From events to MLflow calls. Delivering an event twice leaves MLflow as it was after the first time.

Runs are found again by a tag with their event's id, metrics carry the event's own time (the server drops exact
repeats), parameters and tags are set to the same values, artifacts overwrite themselves. So the cursor may lag behind
what was sent: a crash costs a repeat, never a loss or a duplicate.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from semisup.errors import SemisupError, first_line
from semisup.files import write_atomically
from semisup.records import RECORD, checked, read_json, read_record, verify
from semisup.tracking.events import EVENTS_FILE, LAST_STEP, Event, iter_events
from semisup.tracking.packages import read_classes, read_images, save_package

__all__ = ["CURSOR_FILE", "Cursor", "Delivery", "Summary"]

CURSOR_FILE = "mlflow.json"
EVENT_TAG = "semisup.event"
EVENTS_PER_ROUND = 500  # one round is sent again if the server dies in the middle of it
ITEMS_PER_CALL = {"metrics": 1000, "params": 100}  # MLflow's own limits for log_batch

# Answers to one event that will be the same tomorrow: that event is given up, with a warning. Anything else (no
# connection, overload, credentials, a wrong address) holds delivery up until it is mended.
# ENDPOINT_NOT_FOUND: a server older than MLflow 3 has no logged models.
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND"}
HTTP_REFUSALS = {400, 404, 411, 413, 414, 415, 422}  # from the artifact store, e.g. a proxy's size limit

WRITERS = 16
"""Processes whose runs are remembered: killed ones stay in the list until others have taken their place."""

DIGEST_LENGTH = 36  # MLflow's limit of a data set's digest
KEY_LENGTH = 250  # one that is longer would be refused together with all that are sent with it
TAG_LENGTH = 5000  # longer ones are refused, by older servers together with the whole run

STATUS = {"failed": "FAILED", "killed": "KILLED"}  # any other word: FINISHED


class Writer(BaseModel):
    """The runs of one process that writes events, or of an older one without a name of its own."""

    model_config = ConfigDict(strict=True, extra="forbid")

    run: str
    """MLflow id of its latest parent run."""
    stages: dict[str, str] = Field(default_factory=dict)
    """MLflow id of the latest child run of each stage."""
    steps: dict[str, int] = Field(default_factory=dict)
    """Last step of each stage, planned or seen; its final metrics are filed there, of a stage that is reused too."""
    models: dict[str, str] = Field(default_factory=dict)
    """MLflow id of the logged model of each stage that has one."""


class Cursor(BaseModel):
    """How far delivery has come, kept in `mlflow.json` next to the events."""

    model_config = ConfigDict(strict=True, extra="forbid")

    uri: str
    experiment: str
    offset: Annotated[int, Field(ge=0)] = 0
    """Bytes of the event file that have been dealt with."""
    run: str | None = None
    """MLflow id of the latest parent run of any writer."""
    writers: dict[str, Writer] = Field(default_factory=dict)
    """The latest processes that wrote events, by their id; two at once keep their runs apart."""
    open: list[str] = Field(default_factory=list)
    """MLflow ids of runs that have not ended."""
    time: Annotated[int, Field(ge=0)] = 0
    """When the last delivered event happened, in ms since 1970."""

    @classmethod
    def load(cls, folder: Path) -> Cursor | None:
        """Read the folder's cursor; None if there is none.

        Raises:
            SemisupError: the file does not hold a cursor.
        """
        path = folder / CURSOR_FILE
        if not path.exists():
            return None
        try:
            return checked(TypeAdapter(cls), read_json(path), f"{path}: not a record of uploads")
        except SemisupError as error:
            raise SemisupError(f"{error}; without this file everything is sent again") from None

    def save(self, folder: Path) -> None:
        """Replace the folder's cursor atomically."""
        write_atomically(folder / CURSOR_FILE, self.model_dump_json(indent=1).encode())


@dataclass
class Summary:
    """What one delivery sent."""

    uri: str
    runs: int = 0
    stages: int = 0
    metrics: int = 0
    artifacts: int = 0
    models: int = 0
    refused: list[str] = field(default_factory=list)
    """What MLflow will never take, one sentence each."""

    def __str__(self) -> str:
        kinds = ("runs", "stages", "metrics", "artifacts", "models")
        counts = ", ".join(f"{getattr(self, kind)} {kind}" for kind in kinds)
        return "\n".join([f"sent to {self.uri}: {counts}", *self.refused])


class StoreError(OSError):
    """What the library of an artifact store says, in its own words; the store cannot take anything now."""


class _AstrayError(Exception):
    """An event whose run or stage nobody has begun."""


class Delivery:
    """Sends the events of one folder to one MLflow store, from the cursor on.

    After an exception the cursor in memory may be ahead of what arrived: load the saved one and build a new object.

    Args:
        folder: holds the events and the cursor.
        client: a connected `mlflow.MlflowClient`.
        experiment_id: where new runs go.
        cursor: moved, and saved, as events are dealt with.
        summary: counts are added here.
        warn: told about events that MLflow refuses.
    """

    def __init__(
        self,
        folder: Path,
        client: Any,
        experiment_id: str,
        cursor: Cursor,
        summary: Summary,
        warn: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.client = client
        self.experiment_id = experiment_id
        self.cursor = cursor
        self.summary = summary
        self.warn = warn

    def drain(self) -> None:
        """Send everything up to the end of the file.

        Raises:
            mlflow.exceptions.MlflowException, OSError, sqlalchemy.exc.SQLAlchemyError: MLflow cannot take events now.
            SemisupError: the event file is damaged.
        """
        while self._round():
            pass

    def _round(self) -> bool:
        """Send the next few hundred events; return whether there were any."""
        sent = False
        events = itertools.islice(iter_events(self.folder / EVENTS_FILE, self.cursor.offset), EVENTS_PER_ROUND)
        # Neighboring metrics of one stage go out together; every other event stands alone.
        for _, group in itertools.groupby(events, key=_group_key):
            pairs = list(group)
            try:
                self._deliver([event for event, _ in pairs])
            except _AstrayError as error:  # of a process whose beginning is lost: what comes after it is not held up
                self._refused(f"what {self.folder / EVENTS_FILE} has of a run", str(error))
            last, self.cursor.offset = pairs[-1]
            self.cursor.time = _milliseconds(last)
            self.cursor.save(self.folder)
            sent = True
        return sent

    def _deliver(self, events: list[Event]) -> None:
        event = events[0]
        match event["event"]:
            case "metrics":
                self._metrics(events)
            case "run_start":
                self._run_start(event)
            case "stage_start":
                self._stage_start(event)
            case "artifact":
                self._artifact(event)
            case "model":
                self._model(event)
            case "final_model":
                self._final_model(event)
            case "dataset":
                self._dataset(event)
            case "stage_end":
                self._stage_end(event)
            case "run_end":
                self._run_end(event)

    def _run_start(self, event: Event) -> None:
        tags = dict(event["tags"])
        unfinished = list(self.cursor.open)
        if unfinished:  # the process that wrote these was killed; its last sign of life is when they ended
            self._end(unfinished, "killed", self.cursor.time)
            tags["semisup.continues"] = self.cursor.run
        run = self._find_or_create(event, event["name"], tags)
        self.cursor.run, self.cursor.open = run, [run]
        writers = {name: writer for name, writer in self.cursor.writers.items() if name != event["writer"]}
        writers[event["writer"]] = Writer(run=run)
        self.cursor.writers = dict(list(writers.items())[-WRITERS:])
        self.summary.runs += 1

    def _stage_start(self, event: Event) -> None:
        writer = self._writer(event)
        run = self._find_or_create(event, event["stage"], {**event["tags"], "mlflow.parentRunId": writer.run})
        writer.stages[event["stage"]] = run
        writer.steps[event["stage"]] = _planned(event["params"])
        self.cursor.open.append(run)
        self.summary.stages += 1

    def _find_or_create(self, event: Event, name: str, tags: Mapping[str, Any]) -> str:
        """Return the MLflow id of the run this event began, which an earlier, interrupted delivery may have created."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{EVENT_TAG}` = '{event['id']}'", max_results=1)
        if found:
            run = str(found[0].info.run_id)
        else:
            texts = {_key(key): str(value)[:TAG_LENGTH] for key, value in tags.items()} | {EVENT_TAG: event["id"]}
            created = self.client.create_run(
                self.experiment_id, start_time=_milliseconds(event), tags=texts, run_name=name
            )
            run = str(created.info.run_id)
        self._log_batch(run, "params", _params(event["params"]))
        return run

    def _metrics(self, events: list[Event]) -> None:
        stage = events[0]["stage"]
        run = self._run_of(events[0])
        metrics = [metric for event in events for metric in _metrics(event["values"], event["step"], event)]
        if self._log_batch(run, "metrics", metrics):
            self.summary.metrics += len(metrics)
        if stage is not None:
            steps = self._writer(events[0]).steps
            steps[stage] = max(steps[stage], *(event["step"] for event in events))

    def _stage_end(self, event: Event) -> None:
        stage, run = event["stage"], self._run_of(event)
        writer = self._writer(event)
        metrics = _metrics(event["metrics"], writer.steps[stage], event, writer.models.get(stage))
        if self._log_batch(run, "metrics", metrics):
            self.summary.metrics += len(metrics)
        self._send(f"the status of stage {stage}", self.client.set_tag, run, "semisup.status", event["status"])
        self._end([run], event["status"], _milliseconds(event))

    def _run_end(self, event: Event) -> None:
        writer = self._writer(event)
        own = [run for run in self.cursor.open if run == writer.run or run in writer.stages.values()]
        # A run that another process has been taken to continue ends after all.
        self._end(own or [writer.run], event["status"], _milliseconds(event))
        del self.cursor.writers[event["writer"]]

    def _end(self, runs: list[str], status: str, time: int) -> None:
        word = STATUS.get(status.lower(), "FINISHED")
        for run in reversed(runs):  # children before their parent
            self._send(f"the end of run {run}", self.client.set_terminated, run, word, time)
            if run in self.cursor.open:
                self.cursor.open.remove(run)

    def _artifact(self, event: Event) -> None:
        run = self._run_of(event)
        path = self._find(event["path"])
        where = event["artifact_path"] or None
        if path is not None and self._send(str(path), _stored, self.client.log_artifact, run, str(path), where):
            self.summary.artifacts += 1

    def _model(self, event: Event) -> None:
        run = self._run_of(event)
        path, example = self._find(event["path"]), self._find(event["example"])
        if path is None or example is None:
            return
        try:
            record = read_record(path)
            images, classes = read_images(example), read_classes(path)
        except SemisupError as error:
            self._refused(str(path), str(error))
            return
        found = self._send_for(f"the model of {path}", self._logged_model, event, run, record["fingerprint"])
        if found is None:
            return
        with tempfile.TemporaryDirectory(prefix="semisup-model-") as temporary:
            package = Path(temporary) / "model"
            if (
                self._send(str(path), save_package, package, path, images, classes, found, run)
                and self._send(str(path), _stored, self.client.log_model_artifacts, found, str(package))
                and self._send(str(path), self.client.finalize_logged_model, found, "READY")
            ):
                self._writer(event).models[event["stage"]] = found
                self._output(run, found, self._writer(event).steps.get(event["stage"], 0))
                self.summary.models += 1

    def _logged_model(self, event: Event, run: str, fingerprint: str) -> str:
        """Return the id of the model that this event began; an earlier, interrupted delivery may have made it."""
        query = f"tags.`{EVENT_TAG}` = '{event['id']}'"
        found = self.client.search_logged_models([self.experiment_id], query, max_results=1)
        if found:
            return str(found[0].model_id)
        tags = {EVENT_TAG: event["id"], "fingerprint": fingerprint}
        made = self.client.create_logged_model(
            self.experiment_id, name=_model_name(event["stage"]), source_run_id=run, tags=tags, model_type="classifier"
        )
        return str(made.model_id)

    def _output(self, run: str, model: str, step: int) -> None:
        """Say that a run has made a model, once: MLflow itself would take it again."""
        from mlflow.entities import LoggedModelOutput

        known = self.client.get_run(run).outputs
        if known is None or model not in [output.model_id for output in known.model_outputs]:
            self._send(f"the model of run {run}", self.client.log_outputs, run, [LoggedModelOutput(model, step)])

    def _final_model(self, event: Event) -> None:
        writer = self._writer(event)
        if event["stage"] in writer.models:  # else it was refused, with a warning
            self._output(writer.run, writer.models[event["stage"]], 0)

    def _dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        facts = {"images": event["images"], **event["facts"]}
        dataset = Dataset(
            name=f"{event['name']}-{event['split']}"[:500],
            digest=event["digest"][:DIGEST_LENGTH],
            source_type="semisup",
            source=json.dumps({"name": event["name"], "hash": event["digest"], **facts}),
            profile=json.dumps({"num_rows": event["images"], **facts}),
        )
        read = DatasetInput(dataset, [InputTag("mlflow.data.context", event["split"])])
        run = self._run_of(event)
        self._send(f"the data of run {run}", self.client.log_inputs, run, [read])

    def _find(self, name: str) -> Path | None:
        """Return a file or folder of this folder, which may be sent; None, after a warning, of any other.

        A folder that came from elsewhere cannot have files of this machine sent away, by name or by a link; and what a
        stage's record lists is compared with it.
        """
        path = self.folder / name
        inside = [path, *path.rglob("*")] if path.is_dir() else [path]
        if not all(found.resolve().is_relative_to(self.folder.resolve()) for found in inside):
            self._refused(str(path), "it is not in the folder of the run")
            return None
        if not path.exists():
            self._refused(str(path), "it is no longer there")
            return None
        home = path if path.is_dir() else path.parent
        try:
            if (home / RECORD).exists():
                record = read_record(home)
                verify(home, record, [file.name for file in inside if file.name in record["files"]])
        except SemisupError as error:
            self._refused(str(path), str(error))
            return None
        return path

    def _writer(self, event: Event) -> Writer:
        writer = self.cursor.writers.get(event["writer"])
        if writer is None:
            raise _AstrayError(f"an event '{event['event']}' comes before the start of its run")
        return writer

    def _run_of(self, event: Event) -> str:
        writer, stage = self._writer(event), event["stage"]
        if stage is not None and stage not in writer.stages:
            raise _AstrayError(f"an event '{event['event']}' comes before the start of its stage '{stage}'")
        return writer.run if stage is None else writer.stages[stage]

    def _log_batch(self, run: str, kind: str, items: list[Any]) -> bool:
        """Send `items` in calls of the size MLflow allows; return whether all were taken."""
        taken = True
        for first in range(0, len(items), ITEMS_PER_CALL[kind]):
            part = {kind: items[first : first + ITEMS_PER_CALL[kind]]}
            # Synchronous whatever MLFLOW_ENABLE_ASYNC_LOGGING says: the cursor moves once the server has the data.
            taken &= self._send(f"{kind} of run {run}", self.client.log_batch, run, synchronous=True, **part)
        return taken

    def _send_for(self, what: str, call: Callable[..., str], *args: Any) -> str | None:
        """Make one call and return its answer; None, after a warning, as of `_send`."""
        answers: list[str] = []
        self._send(what, lambda: answers.append(call(*args)))
        return answers[0] if answers else None

    def _send(self, what: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> bool:
        """Make one call; return False, after a warning, if this one thing can never be delivered."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import HTTPError

        try:
            call(*args, **kwargs)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            return self._refused(what, error.message)
        except HTTPError as error:
            if error.response is None or error.response.status_code not in HTTP_REFUSALS:
                raise
            return self._refused(what, str(error))
        return True

    def _refused(self, what: str, reason: str) -> bool:
        self.warn(f"MLflow does not take {what}, which is left out: {reason}")
        return False


def _stored(call: Callable[..., object], *args: Any) -> None:
    """Make a call that reaches the artifact store: S3, Azure and others each have a library with errors of its own.

    Raises:
        StoreError: instead of theirs.
    """
    from mlflow.exceptions import MlflowException

    try:
        call(*args)
    except (MlflowException, OSError, ImportError):
        raise
    except Exception as error:
        raise StoreError(f"its artifact store: {first_line(error)}") from error


def _group_key(pair: tuple[Event, int]) -> tuple[bool, Any]:
    event, end = pair
    return (True, (event["writer"], event["stage"])) if event["event"] == "metrics" else (False, end)


def _milliseconds(event: Event) -> int:
    return int(event["time"] * 1000)


def _metrics(values: Mapping[str, Any], step: int, event: Event, model: str | None = None) -> list[Any]:
    """Return numbers as MLflow has them; those of a logged model are shown next to it, too."""
    from mlflow.entities import Metric

    time = _milliseconds(event)
    return [Metric(_key(key), float(value), time, step, model_id=model) for key, value in values.items()]


def _params(params: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, value) for key, value in _flat(params, "")]


def _flat(params: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield _key(prefix + key), str(value)


def _planned(params: Mapping[str, Any]) -> int:
    """Return the steps that a stage's settings name, 0 where they name none that MLflow takes."""
    steps = params.get("steps")
    return steps if type(steps) is int and 0 <= steps < LAST_STEP else 0


def _model_name(stage: str) -> str:
    """Return `stage` without the characters that MLflow does not allow in a model's name."""
    return re.sub(r"[/:.%\"']", "_", stage)


def _key(name: str) -> str:
    """`name` with the characters MLflow does not allow in keys replaced, and as long as it allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:KEY_LENGTH] or "_"
