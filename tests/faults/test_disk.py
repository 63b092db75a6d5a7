"""A disk that is full, is read-only, or goes away: exit 2, one message with the file, and the same command goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.faults_process import tensors, write_recipe
from tests.nursery import Nursery

RUN = ("run", "recipe.yaml", "--out", "out")


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@contextmanager
def in_memory(place: Path, options: str) -> Iterator[Path]:
    """A file system of its own, in memory, at a new folder; its options are those of tmpfs."""
    place.mkdir()
    if shutil.which("mount") is None or not mount("-t", "tmpfs", "-o", options, "tmpfs", str(place)):
        pytest.skip("mounting needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one, with the recipe on it."""
    with in_memory(tmp_path / "disk", "size=1m") as place:
        write_recipe(place, "train")
        yield place


def assert_refused(code: int, output: str, errno: str) -> None:
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 2 and "Traceback" not in output, output
    assert len(errors) == 1 and errno in errors[0], output


FEW, MANY = [16, 48, 80], list(range(8, 248, 8))


@pytest.mark.parametrize("sizes", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_full_disk(sizes: list[int], disk: Path, nursery: Nursery, single: Path) -> None:
    """Of several sizes in KiB, so that another write is the one that fails; then there is room."""
    full = 0
    for size in sizes:
        for name in ("out", ".semisup"):
            shutil.rmtree(disk / name, ignore_errors=True)
        assert mount("-o", f"remount,size={size}k", str(disk))
        log = disk.parent / "output.log"
        code, output = nursery.run(disk, *RUN, log=log)
        if code != 0:
            full += 1
            assert_refused(code, output, "No space left on device")
        assert mount("-o", "remount,size=8m", str(disk))
        code, output = nursery.run(disk, *RUN, log=log)
        assert code == 0, output
        assert tensors(disk / "out") == tensors(single / "out")
        assert not list(disk.rglob(".*.tmp"))
    assert full >= len(sizes) // 3, "the disk was never full"


def test_a_read_only_disk_and_one_that_goes_away(disk: Path, nursery: Nursery) -> None:
    log = disk.parent / "output.log"
    assert mount("-o", "remount,ro", str(disk))
    assert_refused(*nursery.run(disk, *RUN, log=log), "cannot be")
    assert mount("-o", "remount,rw,size=8m", str(disk))
    child = nursery.start(disk, *RUN, "stages.train.steps=1000000", log=log)
    child.wait_for("a checkpoint", lambda: list((disk / ".semisup").glob("stages/*/checkpoint.pt")))
    shutil.rmtree(disk / "out", ignore_errors=True)
    shutil.rmtree(disk / ".semisup", ignore_errors=True)
    assert_refused(child.wait(), log.read_text(), "No such file or directory")
