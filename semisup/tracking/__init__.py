"""Tracking: every run writes a local event log; a thread beside it copies that log to MLflow."""

from semisup.tracking.events import EventLog
from semisup.tracking.mlflow import MlflowUploader, replay, resolve_uri

__all__ = ["EventLog", "MlflowUploader", "replay", "resolve_uri"]
