"""Uploading the event log to MLflow: next to the training, or afterwards by `semisup track FOLDER`."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from semisup.errors import SemisupError, first_line
from semisup.files import locked_file, whole
from semisup.text import command
from semisup.tracking.database import absolute, database_lock, database_path, database_uri, open_database
from semisup.tracking.delivery import CURSOR_FILE, Cursor, Delivery, Summary
from semisup.tracking.events import EVENTS_FILE, EventLog

__all__ = ["MlflowUploader", "Summary", "ending_run", "replay", "resolve_uri"]

UPLOAD_SECONDS = 60.0  # longest wait for MLflow after a finished run; what is left can be sent later
POLL_SECONDS = 1.0  # how far MLflow may lag behind the log
RETRY_SECONDS = 10.0
DEFAULT_EXPERIMENT = "semisup"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag that says of an experiment that it has training runs, not traces of language models. No documentation has it: it
is what MLflow's page itself sets when one chooses "Machine learning" (3.17). Which view opens is up to the browser."""
LOCK_FILE = f"{CURSOR_FILE}.lock"

# Set for this process where the user has not set them. MLflow's own patience (7 retries of 120 s) would keep a
# delivery waiting for a quarter of an hour; here a failure is met by trying again later.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else a uv.lock in the current folder would travel with every model
}


def resolve_uri(root: Path) -> str:
    """Where runs below `root` are tracked: `MLFLOW_TRACKING_URI` if set, else `mlflow.db` in `root`."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given.strip() or given or database_uri(root.resolve() / "mlflow.db")  # blanks alone: `_connect` refuses them


class MlflowUploader:
    """Copies a folder's events to MLflow from a daemon thread, from now until `close`.

    The thread reads the file that `EventLog` writes and keeps its place in `folder/mlflow.json`. If MLflow cannot be
    reached it says so once, keeps trying, and delivers when it can; what is left at the end waits for `replay`.

    `uri` is the store's address, made absolute and without its password.

    Args:
        folder: where `EventLog` writes.
        uri: MLflow tracking URI; for `sqlite:` the artifacts go to `mlartifacts` next to the database.
        experiment: MLflow experiment, created if missing.
        warn: called from the thread with one sentence at a time.
        retry_seconds: pause between attempts while MLflow cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        experiment: str,
        warn: Callable[[str], None],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._folder = folder.resolve()
        self._uri = absolute(uri)
        self.uri = _public(self._uri)
        self._experiment = experiment
        self._warn = warn
        self._retry_seconds = retry_seconds
        self._warned: set[str] = set()
        self._closing = threading.Event()
        self._delivered = False
        self._folder.mkdir(parents=True, exist_ok=True)
        _cursor(self._folder, self._uri, experiment)  # so that `replay` knows the URI whatever happens from here on
        _prepare_environment()
        self._again = command("semisup", "track", self._folder)
        self._thread = threading.Thread(target=self._work, name="semisup-mlflow", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Try to send what is left; return whether everything has been dealt with.

        Never takes longer than `timeout` seconds. When that is too short the thread goes on in the background for as
        long as the process lives.
        """
        self._closing.set()
        self._thread.join(timeout)
        return self._delivered and not self._thread.is_alive()

    def _work(self) -> None:
        foreseen = False
        try:
            self._upload_when_free()
            foreseen = True
        except SemisupError as error:  # a damaged file, or a wrong address, will not mend itself
            self._delivered, foreseen = False, True
            self._warn_once(f"nothing more is sent to MLflow: {error}")
        finally:
            if not foreseen:  # Python prints the error itself
                self._delivered = False
                self._warn_once(f"the upload to MLflow has broken off; later: {self._again}")

    def _upload_when_free(self) -> None:
        """Wait while an earlier uploader, or a replay, is still at work on this folder, but not beyond the end."""
        while True:
            with locked_file(self._folder / LOCK_FILE, wait=False) as free, contextlib.ExitStack() as stack:
                if free:
                    self._upload(stack)
                    return
            if self._closing.wait(POLL_SECONDS):
                return

    def _upload(self, stack: contextlib.ExitStack) -> None:
        # Imported here: these take seconds, and are what _transient_errors needs to name its classes.
        transient = _transient_errors()
        stack.enter_context(_quiet())
        delivery: Delivery | None = None
        while True:
            # Asked before the file is read: whatever was logged before close() is then seen by this round.
            last_round = self._closing.is_set()
            try:
                if delivery is None:
                    delivery = _connect(self._folder, self._uri, self._experiment, self._warn_once)
                delivery.drain()
                self._delivered = True
            except transient as error:
                delivery, self._delivered = None, False
                self._report(error)
            if last_round:
                return
            self._closing.wait(POLL_SECONDS if delivery else self._retry_seconds)

    def _report(self, error: Exception) -> None:
        if "unreachable" not in self._warned:
            self._warned.add("unreachable")
            self._warn(
                f"{_trouble(self._uri, error)}; the run goes on, its records are kept in {self._folder / EVENTS_FILE} "
                f"and sent when that is mended, or later by: {self._again}"
            )

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._warn(sentence)


@contextlib.contextmanager
def ending_run(log: EventLog, uploader: MlflowUploader | None, on_closed: Callable[[bool], None]) -> Iterator[None]:
    """Record how a run ends, whatever ends it, and give its upload a last chance.

    Args:
        log: of the run, which has started.
        uploader: of the log's folder, or None.
        on_closed: told whether everything has been delivered; not called without an uploader.
    """
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        log.run_end(status)
        if uploader is not None:
            on_closed(uploader.close(UPLOAD_SECONDS if status == "FINISHED" else 5.0))


def replay(folder: Path, uri: str | None = None) -> Summary:
    """Send whatever of a folder's events has not reached MLflow yet; return what was sent.

    The address is never taken from the folder, which may have come from somebody else.

    Args:
        folder: where a run left its `events.jsonl`.
        uri: MLflow tracking URI; default: `MLFLOW_TRACKING_URI`, else the database next to the folder.

    Raises:
        SemisupError: no events there, the folder was tracked elsewhere and `uri` does not say where to send it now,
            MLflow cannot be reached, or a process is at work on the folder.
    """
    folder = whole(folder)
    if not (folder / EVENTS_FILE).exists():
        raise SemisupError(f"{folder}: no {EVENTS_FILE} in this folder, so there is nothing to send")
    cursor = Cursor.load(folder)
    chosen = absolute(uri or resolve_uri(folder.parent))
    if uri is None:
        _check_known(folder, cursor, chosen)
    _prepare_environment()
    with locked_file(folder / LOCK_FILE, wait=False) as free:
        if not free:
            raise SemisupError(f"{folder}: a running process is already sending this folder's events to MLflow")
        refused: list[str] = []
        transient = _transient_errors()
        with _quiet():
            try:
                delivery = _connect(folder, chosen, cursor.experiment if cursor else DEFAULT_EXPERIMENT, refused.append)
                delivery.drain()
            except transient as error:
                raise SemisupError(f"{_trouble(chosen, error)}; nothing is lost, try again later") from error
        delivery.summary.refused = refused
        return delivery.summary


def _check_known(folder: Path, cursor: Cursor | None, uri: str) -> None:
    """Refuse to guess where a folder's events go.

    Raises:
        SemisupError: the folder names another store than the one that would be taken, or there is none yet.
    """
    if cursor is not None and cursor.uri != _public(uri):
        raise SemisupError(
            f"{folder / CURSOR_FILE}: this folder was tracked at {cursor.uri}, and here records go to {_public(uri)}; "
            f"say which you mean: {command('semisup', 'track', folder, '--uri', 'URI')}"
        )
    if cursor is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise SemisupError(f"{folder}: not tracked before, so the MLflow URI must be given: --uri {_public(uri)}")


def _connect(folder: Path, uri: str, experiment: str, warn: Callable[[str], None]) -> Delivery:
    """Open the store, find or make the experiment, and take up the folder's cursor where it still fits."""
    from mlflow import MlflowClient

    if not uri.strip():
        raise SemisupError(
            f"MLFLOW_TRACKING_URI must be an address, not {uri!r}; unset it for mlflow.db next to the runs"
        )
    database = database_path(uri)
    with database_lock(database):
        artifacts = None if database is None else open_database(database, uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment_id = _experiment_id(client, experiment, artifacts)

    cursor = _cursor(folder, uri, experiment)
    if cursor.run is not None and not _has_run(client, cursor.run):  # the store has been wiped: begin again
        cursor = Cursor(uri=_public(uri), experiment=experiment)
    return Delivery(folder, client, experiment_id, cursor, Summary(_public(uri)), warn)


def _experiment_id(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts, tags=KIND))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise MlflowException(
            f"experiment '{name}' was deleted there; restore it by `mlflow experiments restore --experiment-id "
            f"{found.experiment_id}`, or name another by tracking.experiment"
        )
    (key,) = KIND
    if key not in found.tags:  # whoever has chosen another one keeps it
        client.set_experiment_tag(found.experiment_id, key, KIND[key])
    return str(found.experiment_id)


def _cursor(folder: Path, uri: str, experiment: str) -> Cursor:
    """Return the folder's cursor, or a new one where that speaks of another store or another log."""
    cursor = Cursor.load(folder)
    events = folder / EVENTS_FILE
    size = events.stat().st_size if events.exists() else 0
    if cursor is None or (cursor.uri, cursor.experiment) != (_public(uri), experiment) or cursor.offset > size:
        cursor = Cursor(uri=_public(uri), experiment=experiment)
        cursor.save(folder)
    return cursor


def _has_run(client: Any, run: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _transient_errors() -> tuple[type[Exception], ...]:
    """Return what is raised while a store cannot take events (requests' errors are OSErrors)."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, OSError, SQLAlchemyError, ImportError)  # the last: a database without its driver


def _trouble(uri: str, error: Exception) -> str:
    from requests.exceptions import RequestException

    # MLflow wraps requests' errors in its own and puts the whole chain of causes into the text.
    if isinstance(error, RequestException) or isinstance(error.__context__, RequestException):
        return f"MLflow at {_public(uri)} does not answer"
    reason = first_line(error)[:200]
    return f"MLflow at {_public(uri)} does not take the run's records ({reason})"


def _prepare_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Said while MLflow 3.17's own modules are imported, about those modules; the second would reach the terminal, and a
    # process that turns warnings into errors could not import them. Not a catch_warnings block: that changes the
    # filters of every thread, and puts old ones back at the end.
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MLflow, its migrations and urllib3 log in this thread from the terminal; other threads' logs pass."""
    thread = threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "sqlalchemy.engine")]
    # MLflow gives these loggers handlers of their own when it is imported. urllib3 has none: its retries are logged
    # through the root's, so there the logger itself has to be stopped.
    filtered: list[logging.Filterer] = [handler for logger in loggers for handler in logger.handlers]
    filtered.append(logging.getLogger("urllib3.connectionpool"))
    for place in filtered:
        place.addFilter(from_elsewhere)
    try:
        yield
    finally:
        for place in filtered:
            place.removeFilter(from_elsewhere)


def _public(uri: str) -> str:
    """`uri` without its password: this goes into messages and files."""
    parts = urllib.parse.urlsplit(uri)
    if parts.password is None:
        return uri
    return parts._replace(netloc=f"{parts.username}@{parts.netloc.rpartition('@')[2]}").geturl()
