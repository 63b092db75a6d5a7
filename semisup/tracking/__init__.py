"""Tracking: every run writes a local event log; a thread next to it copies that log to MLflow."""

from semisup.tracking.events import EventLog
from semisup.tracking.mlflow import MlflowUploader, ending_run, replay, resolve_uri

__all__ = ["EventLog", "MlflowUploader", "ending_run", "replay", "resolve_uri"]
