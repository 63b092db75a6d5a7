"""Ctrl-C, and two processes that want the same stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.faults_process import environment, events, statuses, tensors, write_recipe
from tests.nursery import Child, Nursery

RUN = ("run", "recipe.yaml", "--out", "out")


def checkpoint_in(folder: Path) -> bool:
    return any((folder / ".semisup").glob("stages/*/checkpoint.pt"))


SLOW = """
import time
from semisup.cli.app import main
from semisup.methods.supervised import Supervised

fast = Supervised.step

def step(self, batch, progress):
    yield from fast(self, batch, progress)
    print("in step", progress.step, "of", progress.total, flush=True)
    time.sleep(5)

Supervised.step = step
main()
"""


@pytest.mark.slow
def test_a_job_is_ended_as_slurm_and_kubernetes_do(nursery: Nursery, single: Path, tmp_path: Path) -> None:
    """SIGTERM to the process group, in the middle of a step of 5 s; a checkpoint, and nobody left for SIGKILL."""
    write_recipe(tmp_path, "train")
    words = ["run", "recipe.yaml", "--out", "my out", "checkpoint_seconds=1000"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while not ("in step" in process.stdout.readline() and events(tmp_path / "my out", "stage_start")):
        assert process.poll() is None, process.communicate()  # a plan tries a step too
    assert not checkpoint_in(tmp_path)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert "go on with: semisup run recipe.yaml --out 'my out' checkpoint_seconds=1000" in errors
    assert checkpoint_in(tmp_path)
    assert [event["status"] for event in events(tmp_path / "my out", "run_end")] == ["KILLED"]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0 and "train resumed" in output, output
    assert tensors(tmp_path / "out") == tensors(single / "out")


def test_the_grace_ends_a_step_that_is_too_slow(nursery: Nursery, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    slow = SLOW.replace("sleep(5)", "sleep(600 if progress.total == 12 else 0)")
    child = nursery.start(tmp_path, *RUN, "--grace", "0.5", code=slow)
    child.wait_for("a step of its stage, not of its plan", lambda: child.has_said("of 12\n"))
    child.kill(signal.SIGTERM)
    assert child.wait() == 143 and "go on with" in child.log.read_text()
    assert not checkpoint_in(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_well(number: int, code: int, nursery: Nursery, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train", steps=100_000)  # it cannot be over before the signal
    child = nursery.start(tmp_path, *RUN)
    child.wait_for("a checkpoint", lambda: checkpoint_in(tmp_path))
    child.kill(number)
    assert child.wait() == code
    assert "go on with: semisup run recipe.yaml --out out" in child.log.read_text()
    assert [event["status"] for event in events(tmp_path / "out", "run_end")] == ["KILLED"]


def test_after_ctrl_c_the_same_command_goes_on_bit_for_bit(nursery: Nursery, single: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    child = nursery.start(tmp_path, *RUN)
    child.wait_for("a checkpoint", lambda: checkpoint_in(tmp_path))
    child.kill(signal.SIGSTOP)  # whatever the machine's pace, it does not run to its end before the signal is sent
    child.kill(signal.SIGINT)
    child.kill(signal.SIGCONT)
    ended = child.wait()
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0, output
    assert (ended, statuses(tmp_path / "out")["train"]) in ((130, "resumed"), (0, "reused")), output
    assert tensors(tmp_path / "out") == tensors(single / "out")


def waiting(nursery: Nursery, folder: Path) -> tuple[Child, Child]:
    """Start two commands that share a stage: the first stopped in the middle of it, the second at the stage's door."""
    write_recipe(folder, "train")
    one = nursery.start(folder, *RUN)
    one.wait_for("a checkpoint", lambda: checkpoint_in(folder))
    one.kill(signal.SIGSTOP)
    one.log = one.log.rename(folder / "first.log")  # the second writes one of its own
    other = nursery.start(folder, "run", "recipe.yaml", "--out", "other")
    other.wait_for("the second run to wait", lambda: other.has_said("waiting for it"))
    assert not events(folder / "other", "stage_start")
    return one, other


def test_a_second_process_waits_and_reuses_what_the_first_trains(
    nursery: Nursery, single: Path, tmp_path: Path
) -> None:
    one, other = waiting(nursery, tmp_path)
    one.kill(signal.SIGCONT)
    assert one.wait() == 0, one.log.read_text()
    assert other.wait() == 0, other.log.read_text()
    assert "train trained" in one.log.read_text()
    assert "train reused" in other.log.read_text()
    assert tensors(tmp_path / "out") == tensors(tmp_path / "other") == tensors(single / "out")


def test_a_second_process_takes_over_when_the_first_is_killed(nursery: Nursery, single: Path, tmp_path: Path) -> None:
    one, other = waiting(nursery, tmp_path)
    one.kill(signal.SIGKILL)
    assert one.wait() == -signal.SIGKILL
    assert other.wait() == 0, other.log.read_text()
    assert "train resumed" in other.log.read_text()
    assert tensors(tmp_path / "other") == tensors(single / "out")


def test_one_result_folder_belongs_to_one_process_at_a_time(nursery: Nursery, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    one = nursery.start(tmp_path, *RUN)
    one.wait_for("a checkpoint", lambda: checkpoint_in(tmp_path))
    one.kill(signal.SIGSTOP)
    one.log = one.log.rename(tmp_path / "first.log")
    other = nursery.start(tmp_path, *RUN, "seed=4")
    other.wait_for("the second run to wait", lambda: other.has_said("waiting for it"))
    assert len(events(tmp_path / "out", "run_start")) == 1
    one.kill(signal.SIGCONT)
    assert one.wait() == other.wait() == 0, other.log.read_text()
    writers = [event["writer"] for event in events(tmp_path / "out", "run_start")]
    assert len(set(writers)) == 2
    assert [event["writer"] for event in events(tmp_path / "out", "run_end")] == writers, "one after the other"


BROKEN_OFF = """
import semisup.__main__ as entry
import semisup.cli.app as app

def broken_off():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        raise SystemExit(143) from None

app.main = broken_off
entry.main()
"""


def test_a_signal_while_a_library_runs_text_does_not_change_the_exit_status(tmp_path: Path) -> None:
    """Python would end a module's process by SIGINT."""
    (tmp_path / "command.py").write_text(BROKEN_OFF)
    ended = subprocess.run([sys.executable, "-m", "command"], cwd=tmp_path, env=environment(), check=False)
    assert ended.returncode == 143
