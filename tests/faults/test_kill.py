"""`kill -9` at any moment, the same command again: the same weights, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from semisup.config import load_recipe
from semisup.methods import METHODS
from semisup.pipeline.plan import needed_stages
from tests.faults.faults_process import (
    STAGES,
    command,
    environment,
    events,
    homes,
    statuses,
    tensors,
    timeless,
    write_recipe,
)
from tests.nursery import Nursery

RUN = ("run", "recipe.yaml", "--out", "out")


def test_the_recipe_here_has_every_method() -> None:
    color = {"colorization"}  # the digits are gray; its resumption is the contract suite's
    assert {stage["method"]["name"] for stage in STAGES.values() if "method" in stage} == set(METHODS) - color


def assert_same_result(out: Path, reference: Path) -> None:
    mine, theirs = tensors(out), tensors(reference)
    stages = {stage["name"] for stage in json.loads((reference / "result.json").read_text())["stages"]}
    assert {Path(name).parent.name for name in mine} == stages
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert timeless(out / "result.json") == timeless(reference / "result.json")


@pytest.mark.slow
def test_a_kill_in_a_stage_of_each_kind_changes_no_bit(nursery: Nursery, few: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(nursery, few, tmp_path)


@pytest.mark.slow
def test_a_kill_in_every_stage_changes_no_bit(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(nursery, whole, tmp_path)


def assert_kills_change_nothing(nursery: Nursery, whole: Path, folder: Path) -> None:
    """One process for each stage, killed soon after that stage's first checkpoint; one that does not train: at once.

    Its recipe has that stage and what it needs; that of the last process has all, and goes on with what is there.
    """
    out = folder / "out"
    draws = random.Random(0)
    stages = load_recipe(whole / "recipe.yaml").stages
    interrupted = []
    for name, reference in homes(whole / "out").items():
        home = folder / ".semisup" / "stages" / reference.name
        begun = home / ("lock" if "kind" in STAGES[name] else "checkpoint.pt")
        write_recipe(folder, *needed_stages(stages, name))
        child = nursery.start(folder, *RUN)
        child.wait_for(f"{name} to begin", begun.exists)
        time.sleep(draws.uniform(0, 0.05))
        child.kill()
        assert child.wait() == -signal.SIGKILL
        if (home / "checkpoint.pt").exists() and not (home / "stage.json").exists():
            interrupted.append(name)
    write_recipe(folder, *stages)
    code, output = nursery.run(folder, *RUN)
    assert code == 0, output
    assert_same_result(out, whole / "out")
    ends = {event["stage"]: event["status"] for event in events(out, "stage_end") if event["status"] != "reused"}
    assert all(ends[name] == "resumed" for name in interrupted)
    assert len(interrupted) >= 4, "the kills came too late to interrupt anything"
    assert all(not (home / "checkpoint.pt").exists() for home in homes(out).values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_kills_of_the_command_itself_change_no_bit(nursery: Nursery, tmp_path: Path) -> None:
    """Fresh processes, killed at any moment of their life, from the import of torch to the last file."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_recipe(tmp_path / name, steps=40)
    started = time.monotonic()
    subprocess.run(command(*RUN), cwd=tmp_path / "whole", env=environment(), check=True, capture_output=True)
    life = time.monotonic() - started
    draws = random.Random(1)
    for _ in range(10):
        process = subprocess.Popen(
            command(*RUN), cwd=tmp_path / "killed", env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, errors = process.communicate(timeout=draws.uniform(0, life))
            assert process.returncode == 0, errors.decode()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    for turn in range(20):  # and as many in the thick of it
        child = nursery.start(tmp_path / "killed", *RUN, *(["--fresh"] if turn % 5 == 0 else []))
        time.sleep(draws.uniform(0, 5))
        child.kill()
        assert child.wait() in (0, -signal.SIGKILL)
    subprocess.run(command(*RUN), cwd=tmp_path / "killed", env=environment(), check=True, capture_output=True)
    assert_same_result(tmp_path / "killed/out", tmp_path / "whole/out")


def test_a_kill_between_the_last_stage_and_the_result(nursery: Nursery, few: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, "pretrain", "finetune")
    record = tmp_path / ".semisup/stages" / homes(few / "out")["finetune"].name / "stage.json"
    for _ in range(5):
        child = nursery.start(tmp_path, *RUN)
        child.wait_for("the last stage", record.exists)
        child.kill()
        child.wait()
        if not (tmp_path / "out/result.json").exists():
            break
        shutil.rmtree(tmp_path / "out")  # a busy machine: the kill came too late, once more
        shutil.rmtree(record.parent)
    assert not (tmp_path / "out/result.json").exists()
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0, output
    assert statuses(tmp_path / "out") == {"pretrain": "reused", "finetune": "reused"}
    mine, theirs = tensors(tmp_path / "out"), tensors(few / "out")
    assert len(mine) == 2 and all(mine[name] == theirs[name] for name in mine)
    assert timeless(tmp_path / "out/result.json")["stages"] == [
        stage for stage in timeless(few / "out/result.json")["stages"] if stage["name"] in ("pretrain", "finetune")
    ]


def test_a_kill_between_the_record_and_the_removal_of_the_checkpoint(
    nursery: Nursery, single: Path, tmp_path: Path
) -> None:
    """The stage is finished: what its checkpoint says no longer matters."""
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    (homes(tmp_path / "out")["train"] / "checkpoint.pt").write_bytes(b"left over")
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0, output
    assert statuses(tmp_path / "out") == {"train": "reused"}
    assert tensors(tmp_path / "out") == tensors(single / "out")
