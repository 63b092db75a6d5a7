"""A recipe of every kind of stage that trains for a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semisup.config import parse_recipe
from semisup.pipeline import RunResult, run
from semisup.settings import Recipe

SMALL: dict[str, Any] = {
    "name": "small",
    "device": "cpu",
    "log_every": 2,
    "tracking": {"mlflow": False},
    "data": {"source": "digits", "labels": 40},
    "model": {"name": "cnn", "width": 4},
    "stages": {
        "pretrain": {"method": {"name": "simclr_v2"}, "batch": {"unlabeled": 32}, "steps": 4},
        "finetune": {
            "init": {"from": "pretrain", "head_layer": 1},
            "method": {"name": "supervised"},
            "batch": {"labeled": 16},
            "ema": 0.5,
            "steps": 4,
        },
        "labels": {"kind": "relabel", "teacher": ["finetune"]},
        "student": {
            "teacher": "finetune",
            "model": {"name": "cnn", "width": 3},
            "method": {"name": "distill"},
            "batch": {"unlabeled": 32},
            "steps": 3,
        },
    },
}


def small(*overrides: str) -> Recipe:
    """The recipe with some keys changed."""
    return parse_recipe(SMALL, overrides)


def run_small(out: Path, *overrides: str, fresh: bool = False) -> RunResult:
    """Run it without a word."""
    return run(small(*overrides), out=out, quiet=True, fresh=fresh)


def statuses(result: RunResult) -> dict[str, str]:
    """Stage -> what was done."""
    return {stage.name: stage.status for stage in result.stages}
