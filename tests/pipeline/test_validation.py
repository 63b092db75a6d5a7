"""Validation labels are charged to the budget; an oracle number is asked for and says that it is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from semisup.config import parse_recipe
from semisup.pipeline import run
from semisup.settings import Recipe
from tests.pipeline.pipeline_small import run_small, statuses


def classifier(**recipe: object) -> Recipe:
    return parse_recipe(
        {
            "name": "one",
            "device": "cpu",
            "tracking": {"mlflow": False},
            "data": {"source": "digits", "labels": 100},
            "model": {"name": "cnn", "width": 4},
            "stages": {
                "train": {"method": {"name": "supervised"}, "batch": {"labeled": 32}, "ema": 0.5, "steps": 12},
            },
            **recipe,
        }
    )


def test_validation_labels_are_not_trained_on_and_measured(tmp_path: Path) -> None:
    result = run_small(tmp_path / "all")
    held = run_small(tmp_path / "held", "data.validation=0.25")
    assert (result.data["n_labeled"], result.data["n_validation"]) == (40, 0)
    assert (held.data["n_labeled"], held.data["n_validation"]) == (30, 10)
    assert statuses(held)["pretrain"] == "reused", "no label is read there, so the stage serves both"
    assert statuses(held)["finetune"] == "trained"
    metrics = held["finetune"].metrics
    assert metrics["validation/accuracy"] in [n / 10 for n in range(11)] and metrics["validation/nll"] > 0
    assert "validation/accuracy" not in result["finetune"].metrics


def test_the_oracle_is_the_best_of_its_looks_and_changes_nothing_else(tmp_path: Path) -> None:
    plain = run(classifier(), out=tmp_path / "plain", quiet=True)["train"].metrics
    seen = run(classifier(oracle_every=5), out=tmp_path / "oracle", quiet=True)["train"].metrics
    assert "oracle/accuracy" not in plain
    assert seen["test/accuracy"] == plain["test/accuracy"]
    assert seen["oracle/accuracy"] >= seen["test/accuracy"]
    assert seen["oracle/step"] in (5, 10, 12)
    short = classifier(oracle_every=12)
    short.stages["train"].steps = 12
    last = run(short, out=tmp_path / "last", quiet=True)["train"].metrics
    assert (last["oracle/accuracy"], last["oracle/step"]) == (pytest.approx(last["test/accuracy"]), 12)
