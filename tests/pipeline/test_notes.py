"""What the plan says of a stage that runs, but not as its author may think."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from semisup.config import parse_recipe
from semisup.pipeline import make_plan, run
from tests.pipeline.pipeline_small import SMALL

MOCO = {"name": "moco", "bn_splits": 8}


def notes(model: dict[str, Any], method: dict[str, Any], **stage: Any) -> tuple[str, ...]:
    train = {"method": method, "steps": 2, "batch": {"labeled": 8, "unlabeled": 8}, **stage}
    plan = make_plan(parse_recipe({**copy.deepcopy(SMALL), "model": model, "stages": {"train": train}}), trial=False)
    return plan.stages[0].notes


@pytest.mark.parametrize(("parts", "batch", "warned"), [(8, 64, True), (8, 248, True), (8, 256, False), (1, 8, False)])
def test_parts_of_a_moco_batch_that_are_too_small_for_batchnorm(parts: int, batch: int, warned: bool) -> None:
    method = {"name": "moco", "bn_splits": parts}
    found = notes({"name": "cnn", "width": 4}, method, batch={"unlabeled": batch}, steps=100)
    assert [note.startswith("method.bn_splits:") for note in found] == ([True] if warned else [])


@pytest.mark.parametrize(
    ("momentum", "steps", "warned"), [(0.001, 600, True), (0.001, 3000, False), (0.1, 28, True), (0.1, 29, False)]
)
def test_statistics_that_cannot_settle(momentum: float, steps: int, warned: bool) -> None:
    model = {"name": "wrn", "depth": 10, "width": 1, "bn_momentum": momentum}
    found = notes(model, {"name": "supervised"}, steps=steps, refresh_batchnorm="auto")
    assert [note.startswith("model:") and "bn_momentum" in note for note in found] == ([True] if warned else [])
    found = notes(model, {"name": "supervised"}, steps=steps)
    assert [note.startswith("refresh_batchnorm:") for note in found] == ([True] if warned else [])


def test_the_momentum_that_a_note_names_is_enough() -> None:
    model = {"name": "wrn", "depth": 10, "width": 1, "bn_momentum": 0.001}
    named = float(notes(model, {"name": "supervised"}, steps=50)[0].split("bn_momentum: ")[1].split()[0])
    assert notes({**model, "bn_momentum": named * 1.01}, {"name": "supervised"}, steps=50) == ()


@pytest.mark.parametrize(
    ("method", "ema", "warned"),
    [
        ({"name": "mean_teacher"}, 0.99, True),
        ({"name": "mean_teacher"}, None, False),
        ({"name": "fixmatch", "teacher": "ema"}, 0.99, True),
        ({"name": "fixmatch"}, 0.99, False),
    ],
)
def test_an_average_of_an_average(method: dict[str, Any], ema: float | None, warned: bool) -> None:
    found = notes({"name": "cnn", "width": 4}, method, ema=ema, steps=100)
    assert [note.startswith("ema:") for note in found] == ([True] if warned else [])


def test_notes_are_printed_with_their_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = copy.deepcopy(SMALL)
    recipe["stages"] = {"train": {"method": MOCO, "steps": 40, "batch": {"unlabeled": 16}}}
    run(parse_recipe(recipe), out=tmp_path / "out", dry_run=True, quiet=True)
    assert "stages.train.method.bn_splits:" in capsys.readouterr().err
