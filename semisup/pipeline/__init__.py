"""Recipes to results."""

from __future__ import annotations

from semisup.pipeline.plan import Plan, make_plan
from semisup.pipeline.result import RunResult, StageResult
from semisup.pipeline.run import run

__all__ = ["Plan", "RunResult", "StageResult", "make_plan", "run"]
