"""A suite in MLflow: a parent run, below which every run of the suite is a child."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semisup._version import __version__
from semisup.bench.execution.jobs import Job
from semisup.bench.execution.progress import BenchConsole
from semisup.bench.suites.runs import RunSpec
from semisup.bench.suites.suite import Suite
from semisup.files import parent_of
from semisup.stages import Artifact
from semisup.text import command
from semisup.tracking import EventLog, MlflowUploader, ending_run, resolve_uri

__all__ = ["record_run", "recorded"]


@contextmanager
def recorded(suite: Suite, folder: Path, data_hash: str, console: BenchConsole) -> Iterator[EventLog]:
    """Open the suite's event log and, if the suite wants it, its upload to MLflow in the background."""
    log = EventLog(folder)
    uploader = None
    if suite.tracking.mlflow:
        uploader = MlflowUploader(folder, resolve_uri(parent_of(folder)), suite.tracking.experiment, console.warn)
    params = suite.model_dump()
    del params["settings"]
    log.run_start(suite.name, params, {"data_hash": data_hash, "semisup_version": __version__})

    def on_closed(delivered: bool) -> None:
        if not delivered:
            console.warn(f"some numbers have not reached MLflow; send them with: {command('semisup', 'track', folder)}")

    with ending_run(log, uploader, on_closed):
        yield log


def record_run(log: EventLog, spec: RunSpec, jobs: Sequence[Job], artifact: Artifact | None, error: str) -> None:
    """Record a child run: its settings, its numbers, how it ended. `artifact` is None where it failed, with `error`."""
    params = {
        "entry": spec.entry,
        "labels": str(spec.labels),
        "draw": spec.draw,
        "init": spec.init,
        "compute": spec.compute.text or "recipe",
        "options": " ".join(spec.options),
        "validation": spec.validation,
        "stages": {job.name: job.fingerprint for job in jobs},
    }
    tags = {"fingerprint": jobs[-1].fingerprint, **({"error": error} if artifact is None else {})}
    log.stage_start(spec.name, params, tags)
    metrics = {} if artifact is None else artifact.metrics
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    log.stage_end(spec.name, "failed" if artifact is None else "finished", numbers)
