"""Tracking: every run writes a local event log; a thread next to it copies that log to MLflow."""

from semisup.tracking.delivery import CURSOR_FILE
from semisup.tracking.events import EVENTS_FILE, EventLog
from semisup.tracking.mlflow import MlflowUploader, ending_run, replay, resolve_uri

__all__ = ["CURSOR_FILE", "EVENTS_FILE", "EventLog", "MlflowUploader", "ending_run", "replay", "resolve_uri"]
