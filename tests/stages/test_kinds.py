"""A kind of stage costs one file and one line: that file and that line, added to a copy of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import semisup
from semisup.stages import kinds

COUNT = """
from typing import Literal

from semisup.settings import Input, StageConfig
from semisup.options import Count

__all__ = ["LEAVES", "Config", "check", "inputs", "plan", "run"]


class Config(StageConfig):
    kind: Literal["count"] = "count"
    of: str | None = None
    times: Count = 1


LEAVES: tuple[str, ...] = ()


def inputs(stage):
    return [] if stage.of is None else [Input("of", stage.of, "network")]


def check(stage):
    if stage.of is None:
        yield "of", "missing"


def plan(whole, name, stage, earlier):
    from semisup.stages.planned import StagePlan

    return StagePlan(name=name, config=stage, inputs=(stage.of,))


def run(context):
    from semisup.stages.artifact import finish_untrained

    metrics = {"counted": context.config.times * len(context.data.x_train)}
    artifact = finish_untrained(
        context.folder, [], metrics, name=context.name, kind="count", seconds=0.5, images=1, evaluation_seconds=0.5,
        parameters=0,
    )
    return artifact, None
"""
USE = """
import sys
from pathlib import Path
from semisup.config import parse_recipe
from semisup.errors import SemisupError
from semisup.pipeline import run
from tests.pipeline.pipeline_small import SMALL

SMALL["stages"] = {"pretrain": SMALL["stages"]["pretrain"], "counts": {"kind": "count", "of": "pretrain", "times": 2}}
for wrong in ("counts.times=0", "counts.tims=3", "counts.of=null", "counts.of=pretrian", "counts.kind=coumt"):
    try:
        parse_recipe(SMALL, ["stages." + wrong])
    except SemisupError as error:
        print(error)
for _ in range(2):
    result = run(parse_recipe(SMALL), out=Path(sys.argv[1]), quiet=True)
    print(result["counts"].status, result["counts"].metrics["counted"])
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The folder of a copy of the package, with what Python has compiled of it, that has one kind more."""
    package = Path(semisup.__file__).parent
    shutil.copytree(package, tmp_path / "semisup")
    shutil.copytree(Path(__file__).parents[1] / "pipeline", tmp_path / "tests" / "pipeline")
    home = tmp_path / "semisup" / "stages" / "kinds"
    (home / "count.py").write_text(COUNT)
    text = (home / "__init__.py").read_text()
    line = "KINDS: tuple[Kind, ...] = (train, "
    assert text.count(line) == 1
    added = text.replace(line, f"from semisup.stages.kinds import count\n{line}count, ")
    (home / "__init__.py").write_text(added)
    return tmp_path


def test_a_kind_costs_one_file_and_one_line(copied: Path) -> None:
    """Its keys are checked like the others', its inputs are found, and it is planned, run, stored and found again."""
    env = {**os.environ, "PYTHONPATH": str(copied)}
    command = [sys.executable, "-c", USE, str(copied / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=copied, env=env)
    assert done.returncode == 0, done.stderr
    times, unknown, missing, reference, kind, first, second = done.stdout.splitlines()
    assert times.endswith("stages.counts.times: must be at least 1, not 0")
    assert unknown.endswith("stages.counts.tims: unknown key; did you mean 'times'?")
    assert missing.endswith("stages.counts.of: missing")
    assert reference.endswith("stages.counts.of: no stage 'pretrian'; did you mean 'pretrain'?")
    assert kind.endswith("not 'coumt'; did you mean 'count'?")
    assert (first, second) == ("trained 2876", "reused 2876")


def test_every_file_of_a_kind_is_among_the_kinds() -> None:
    files = {path.stem for path in Path(kinds.__file__).parent.glob("*.py")} - {"__init__"}
    assert {kind.__name__.rpartition(".")[2] for kind in kinds.KINDS} == files  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_kind_is_named_by_its_settings(kind: kinds.Kind) -> None:
    name = kinds.name_of(kind)
    assert kinds.kind_of(name) is kind
    assert kind.Config().kind == name
