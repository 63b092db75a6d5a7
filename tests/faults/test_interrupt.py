"""Ctrl-C, and two processes that want the same stage."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from tests.faults.faults_process import Child, Nursery, command, environment, events, statuses, tensors, write_recipe

RUN = ("run", "recipe.yaml", "--out", "out")


def checkpoint_in(folder: Path) -> bool:
    return any((folder / ".semisup").glob("stages/*/checkpoint.pt"))


def test_ctrl_c_exits_130_says_how_to_go_on_and_the_same_command_resumes(
    nursery: Nursery, single: Path, tmp_path: Path
) -> None:
    write_recipe(tmp_path, "train")
    words = ["run", "recipe.yaml", "--out", "my out"]
    process = subprocess.Popen(
        command(*words, "stages.train.steps=100000", "checkpoint_seconds=1000"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not events(tmp_path / "my out", "metrics"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "go on with: semisup run recipe.yaml --out 'my out' stages.train.steps=100000" in errors
    assert checkpoint_in(tmp_path)
    ends = [event["status"] for event in events(tmp_path / "my out", "run_end")]
    assert ends == ["KILLED"]


def test_after_ctrl_c_the_same_command_goes_on_bit_for_bit(nursery: Nursery, single: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    child = nursery.start(tmp_path, *RUN)
    child.wait_for("a checkpoint", lambda: checkpoint_in(tmp_path))
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0 and "train resumed" in output, output
    assert statuses(tmp_path / "out") == {"train": "resumed"}
    assert tensors(tmp_path / "out") == tensors(single / "out")


def waiting(first: Nursery, second: Nursery, folder: Path) -> tuple[Child, Child]:
    """Start two commands that share a stage: the first stopped in the middle of it, the second at the stage's door."""
    write_recipe(folder, "train")
    one = first.start(folder, *RUN)
    one.wait_for("a checkpoint", lambda: checkpoint_in(folder))
    one.kill(signal.SIGSTOP)
    one.log = one.log.rename(folder / "first.log")  # the second writes one of its own
    other = second.start(folder, "run", "recipe.yaml", "--out", "other")
    other.wait_for("the second run to wait", lambda: other.has_said("waiting for it"))
    assert not events(folder / "other", "stage_start")
    return one, other


def test_a_second_process_waits_and_reuses_what_the_first_trains(
    nursery: Nursery, second_nursery: Nursery, single: Path, tmp_path: Path
) -> None:
    one, other = waiting(nursery, second_nursery, tmp_path)
    one.kill(signal.SIGCONT)
    assert one.wait() == 0, one.log.read_text()
    assert other.wait() == 0, other.log.read_text()
    assert "train trained" in one.log.read_text()
    assert "train reused" in other.log.read_text()
    assert tensors(tmp_path / "out") == tensors(tmp_path / "other") == tensors(single / "out")


def test_a_second_process_takes_over_when_the_first_is_killed(
    nursery: Nursery, second_nursery: Nursery, single: Path, tmp_path: Path
) -> None:
    one, other = waiting(nursery, second_nursery, tmp_path)
    one.kill(signal.SIGKILL)
    assert one.wait() == -signal.SIGKILL
    assert other.wait() == 0, other.log.read_text()
    assert "train resumed" in other.log.read_text()
    assert tensors(tmp_path / "other") == tensors(single / "out")


def test_one_result_folder_belongs_to_one_process_at_a_time(
    nursery: Nursery, second_nursery: Nursery, tmp_path: Path
) -> None:
    write_recipe(tmp_path, "train")
    one = nursery.start(tmp_path, *RUN)
    one.wait_for("a checkpoint", lambda: checkpoint_in(tmp_path))
    one.kill(signal.SIGSTOP)
    one.log = one.log.rename(tmp_path / "first.log")
    other = second_nursery.start(tmp_path, *RUN, "seed=4")
    other.wait_for("the second run to wait", lambda: other.has_said("waiting for it"))
    assert len(events(tmp_path / "out", "run_start")) == 1
    one.kill(signal.SIGCONT)
    assert one.wait() == other.wait() == 0, other.log.read_text()
    writers = [event["writer"] for event in events(tmp_path / "out", "run_start")]
    assert len(set(writers)) == 2
    assert [event["writer"] for event in events(tmp_path / "out", "run_end")] == writers, "one after the other"
