"""One run on two ranks, of which one is killed: the job ends soon, the same command goes on, to the same weights."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.faults.faults_process import environment, homes, tensors

RECIPE: dict[str, Any] = {
    "name": "ranks",
    "data": {"source": "digits", "labels": 40},
    "device": "cpu",
    "model": {"name": "cnn", "width": 4},
    "tracking": {"mlflow": False},
    "checkpoint_seconds": 0,
    "stages": {
        "pretrain": {"method": {"name": "simclr"}, "steps": 150, "batch": {"unlabeled": 32}},
        "train": {
            "init": "pretrain",
            "method": {"name": "fixmatch"},
            "augment": "auto",
            "steps": 150,
            "batch": {"labeled": 16, "unlabeled": 32},
        },
    },
}
RUN = ("-m", "semisup", "run", "recipe.yaml", "--out", "out")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def command(folder: Path, *words: str, more: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    recipe = RECIPE | {"stages": {**RECIPE["stages"], **(more or {})}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output


def rank_of(parent: int, rank: int) -> int | None:
    """Process of a rank below one that started it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = int(re.search(r"^PPid:\t(\d+)", (folder / "status").read_text(), re.M)[1])  # type: ignore[index]
            if mine == parent and f"\0LOCAL_RANK={rank}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:  # it has ended meanwhile
            continue
    return None


def wait_for_a_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until a stage has written one that was not there."""
    before = {path: path.stat().st_mtime_ns for path in folder.glob(".semisup/stages/*/checkpoint.pt")}
    while process.poll() is None:
        for path in folder.glob(".semisup/stages/*/checkpoint.pt"):
            if path.exists() and path.stat().st_mtime_ns != before.get(path):
                return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    code, output = finished(command(folder, *RUN, "--processes", "2"))
    assert code == 0, output
    assert output.count("results: ") == 1, "rank 0 alone speaks"
    return folder


@pytest.mark.parametrize("turn", range(4))
def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(whole: Path, tmp_path: Path, turn: int) -> None:
    draws = random.Random(turn)
    process = command(tmp_path, *RUN, "--processes", "2")
    wait_for_a_checkpoint(tmp_path, process)
    time.sleep(draws.uniform(0, 1))
    victim = rank_of(process.pid, turn % 2)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    code, output = finished(process, 60)
    assert code == 128 + signal.SIGKILL, output
    assert f"rank {turn % 2} was ended by SIGKILL; go on with: semisup run" in output
    assert "Traceback" not in output
    code, output = finished(command(tmp_path, *RUN, "--processes", "2"))
    assert code == 0, output
    assert tensors(tmp_path / "out") == tensors(whole / "out"), "bit for bit"


@pytest.mark.parametrize("rank", range(2))
def test_a_kill_in_the_choice_of_views_keeps_what_is_scored(whole: Path, tmp_path: Path, rank: int) -> None:
    process = command(tmp_path, *RUN, "--processes", "2")
    kept = tmp_path / ".semisup" / "stages" / homes(whole / "out")["train"].name / "views.json"
    while process.poll() is None and not kept.exists():
        time.sleep(0.01)
    victim = rank_of(process.pid, rank)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    code, output = finished(process, 60)
    assert code == 128 + signal.SIGKILL, output
    scored = json.loads(kept.read_text())
    scored["scores"]["weak"][0]["seconds"] = 1000.0  # by which it is known again
    kept.write_text(json.dumps(scored))
    code, output = finished(command(tmp_path, *RUN, "--processes", "2"))
    assert code == 0, output
    assert tensors(tmp_path / "out") == tensors(whole / "out"), "bit for bit"
    assert json.loads((tmp_path / "out/train/stage.json").read_text())["seconds"] > 1000


def test_ranks_do_not_outlive_a_killed_command(whole: Path, tmp_path: Path) -> None:
    process = command(tmp_path, *RUN, "--processes", "2")
    wait_for_a_checkpoint(tmp_path, process)
    started = [psutil.Process(rank_of(process.pid, rank)) for rank in range(2)]
    process.kill()
    code, _ = finished(process, 60)  # its output ends with the last of the ranks, which write there, too
    assert code == -signal.SIGKILL
    assert psutil.wait_procs(started, timeout=10)[1] == []
    code, output = finished(command(tmp_path, *RUN, "--processes", "2"))
    assert code == 0, output
    assert tensors(tmp_path / "out") == tensors(whole / "out"), "bit for bit"


def test_torchrun_starts_a_killed_job_again(whole: Path, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    process = command(tmp_path, *torchrun, *RUN)
    wait_for_a_checkpoint(tmp_path, process)
    victim = rank_of(process.pid, 1)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    code, output = finished(process)
    assert code == 0, output
    assert tensors(tmp_path / "out") == tensors(whole / "out")


def test_a_stop_is_everybodys_and_leaves_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    process = command(tmp_path, *RUN, "--processes", "2")
    wait_for_a_checkpoint(tmp_path, process)
    process.terminate()
    code, output = finished(process, 60)
    assert code == 128 + signal.SIGTERM, output
    assert "Traceback" not in output and output.count("stopped; go on with: ") == 1
    assert "torch/distributed" not in output, "its launcher's own reports"
    code, output = finished(command(tmp_path, *RUN))  # one process goes on with what two have done
    assert code == 0, output
    mine, theirs = homes(tmp_path / "out"), homes(whole / "out")
    assert {name: home.name for name, home in mine.items()} == {name: home.name for name, home in theirs.items()}


@pytest.mark.parametrize("seconds", [0.5, 1, 1.5, 2, 4, 6])
def test_a_stop_before_the_ranks_have_met_is_heard_and_told_once(seconds: float, tmp_path: Path) -> None:
    process = command(tmp_path, *RUN, "stages.train.steps=50000", "--processes", "2")
    time.sleep(seconds)
    process.terminate()
    code, output = finished(process, 60)
    assert code == 128 + signal.SIGTERM or (seconds < 1 and code == -signal.SIGTERM), output
    assert "Traceback" not in output and output.count("stopped; go on with: ") == (code > 0), output


@pytest.mark.parametrize("wrong", ["data.labels=5000", "stages.train.method.treshold=1", "model=5", "sed=1"])
def test_a_mistake_is_told_once(wrong: str, tmp_path: Path) -> None:
    code, output = finished(command(tmp_path, *RUN, wrong, "--processes", "2"))
    assert code == 2
    assert output.count("error: ") == 1, output
    assert "Traceback" not in output


@pytest.mark.parametrize("words", [("run", "nowhere.yaml"), ("bench", "digits/budgets")])
def test_a_mistake_of_torchruns_command_is_told_once(words: tuple[str, str], tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    code, output = finished(command(tmp_path, *torchrun, "-m", "semisup", *words))
    assert code == 1, "torchrun's own"
    assert len(re.findall("^error: ", output, re.M)) == 1, output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


def test_a_dry_run_of_two_ranks_measures_together(tmp_path: Path) -> None:
    code, output = finished(command(tmp_path, *RUN, "--dry-run", "--processes", "2"))
    assert code == 0, output
    assert output.count("expected time of training: pretrain ") == 1


def test_what_would_be_trained_again_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    labels = {"kind": "relabel", "teacher": ["train"], "vote": "best"}
    chosen = {"kind": "relabel", "teacher": ["train"]}  # trains nothing again
    code, output = finished(command(tmp_path, *RUN, "--processes", "2", more={"trusted": chosen, "voted": labels}))
    assert code == 2, output
    assert output.count("stages.voted: trains 'train' again to choose, which one process alone does") == 1
    assert not (tmp_path / "out").exists()
