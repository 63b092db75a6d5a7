"""Disks that are full, folders that cannot be written, files that rotted: exit 2, one message, nothing lost."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.faults_process import homes, statuses, tensors, write_recipe
from tests.nursery import Nursery

RUN = ("run", "recipe.yaml", "--out", "out")


def assert_message(code: int, output: str, *words: str) -> None:
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 2, output
    assert "Traceback" not in output
    assert len(errors) == 1, output
    for word in words:
        assert word in errors[0], output


@pytest.fixture(scope="module")
def killed(forks: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was killed in the middle of its only stage."""
    folder = tmp_path_factory.mktemp("killed")
    write_recipe(folder, "train", steps=40)
    child = forks.start(folder, *RUN)
    child.wait_for("a checkpoint", lambda: list(folder.glob(".semisup/stages/*/checkpoint.pt")))
    child.kill()
    assert child.wait() == -signal.SIGKILL
    return folder


@pytest.fixture
def begun(killed: Path, tmp_path: Path) -> Path:
    """A copy's checkpoint."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    for torn in tmp_path.rglob(".*.tmp"):
        torn.unlink()
    return next(tmp_path.glob(".semisup/stages/*/checkpoint.pt"))


@pytest.fixture
def finished(single: Path, tmp_path: Path) -> Path:
    """A copy's home of the only stage of a finished run."""
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    return homes(tmp_path / "out")["train"]


def test_a_full_disk_keeps_the_last_checkpoint(nursery: Nursery, begun: Path, tmp_path: Path) -> None:
    before = begun.read_bytes()
    code, output = nursery.run(tmp_path, *RUN, largest_file=len(before) // 2)
    assert_message(code, output, str(begun.relative_to(tmp_path)), "cannot be written", "File too large")
    assert begun.read_bytes() == before
    assert sorted(path.name for path in begun.parent.iterdir()) == ["checkpoint.pt", "lock"]
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0 and statuses(tmp_path / "out") == {"train": "resumed"}, output


def test_a_damaged_checkpoint_is_named_and_never_silently_ignored(
    nursery: Nursery, begun: Path, tmp_path: Path
) -> None:
    content = bytearray(begun.read_bytes())
    content[len(content) // 2] ^= 1
    begun.write_bytes(content)
    code, output = nursery.run(tmp_path, *RUN)
    assert_message(code, output, str(begun.relative_to(tmp_path)), "damaged", "delete it")
    begun.unlink()
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0 and statuses(tmp_path / "out") == {"train": "trained"}, output


def test_a_full_disk_while_the_first_file_of_a_stage_is_written(nursery: Nursery, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    code, output = nursery.run(tmp_path, *RUN, "checkpoint_seconds=1000", largest_file=6000)
    assert_message(code, output, "confusion.png", "cannot be written", "File too large")


def test_a_full_disk_while_an_event_is_written(nursery: Nursery, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    code, output = nursery.run(tmp_path, *RUN, "checkpoint_seconds=1000", largest_file=1500)
    assert_message(code, output, "events.jsonl")


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_an_output_folder_that_cannot_be_made(nursery: Nursery, tmp_path: Path, out: str) -> None:
    write_recipe(tmp_path, "train")
    (tmp_path / "file").write_text("a file")
    code, output = nursery.run(tmp_path, "run", "recipe.yaml", "--out", out)
    assert_message(code, output, "out: ", "file")


@pytest.mark.parametrize("obstacle", [".semisup", "out/train", "out/recipe.yaml", "out/events.jsonl"])
def test_something_else_where_a_run_wants_to_write(nursery: Nursery, tmp_path: Path, obstacle: str) -> None:
    write_recipe(tmp_path, "train")
    path = tmp_path / obstacle
    path.parent.mkdir(exist_ok=True)
    if path.suffix:
        path.mkdir()
    else:
        path.write_text("a file")
    code, output = nursery.run(tmp_path, *RUN)
    assert_message(code, output, obstacle)


@pytest.mark.parametrize("name", ["model.safetensors", "stage.json"])
def test_a_damaged_artifact_is_named(nursery: Nursery, finished: Path, tmp_path: Path, name: str) -> None:
    good = (finished / name).read_bytes()
    (finished / name).write_bytes(good[: len(good) // 2])
    code, output = nursery.run(tmp_path, *RUN)
    assert_message(code, output, str((finished / name).relative_to(tmp_path)), "damaged", "delete")


def test_a_lost_artifact_is_named_and_the_advice_helps(nursery: Nursery, finished: Path, tmp_path: Path) -> None:
    before = tensors(tmp_path / "out")
    (finished / "example.npy").unlink()
    code, output = nursery.run(tmp_path, *RUN)
    assert_message(code, output, str(finished.relative_to(tmp_path)), "example.npy", "missing", "delete")
    shutil.rmtree(finished)
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0, output
    assert statuses(tmp_path / "out") == {"train": "trained"}
    assert tensors(tmp_path / "out") == before


def test_what_is_lost_next_to_the_result_is_put_back(nursery: Nursery, finished: Path, tmp_path: Path) -> None:
    before = tensors(tmp_path / "out")
    (tmp_path / "out/train/model.safetensors").unlink()
    (tmp_path / "out/train/model.json").unlink()
    (tmp_path / "out/train/model.json").write_bytes(b"rubbish")
    (tmp_path / "out/result.json").write_text("rubbish")
    code, output = nursery.run(tmp_path, *RUN)
    assert code == 0, output
    assert tensors(tmp_path / "out") == before
    assert (tmp_path / "out/train/model.json").read_bytes() == (finished / "model.json").read_bytes()
    assert statuses(tmp_path / "out") == {"train": "reused"}


def test_reruns_leave_no_temporary_files(nursery: Nursery, finished: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the first links the copies anew, the second finds its own links
        code, output = nursery.run(tmp_path, *RUN)
        assert code == 0, output
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*.tmp")] == []


def test_a_loss_that_is_not_finite_is_a_message_with_stage_and_step(nursery: Nursery, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    code, output = nursery.run(tmp_path, *RUN, "stages.train.optimizer.lr=1e18")
    assert_message(code, output, "stages.train: step ", "not finite: ", "last good checkpoint is .semisup/stages/")
    assert not (tmp_path / "out/result.json").exists()
    ends = [line for line in (tmp_path / "out/events.jsonl").read_text().splitlines() if "run_end" in line]
    assert [json.loads(line)["status"] for line in ends] == ["FAILED"]
