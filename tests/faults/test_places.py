"""File systems without locks or without room for another file, and other users of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from semisup.errors import SemisupError
from semisup.files import NO_LOCK, locked
from tests.faults.faults_process import tensors, write_recipe
from tests.faults.test_disk import assert_refused, in_memory, mount
from tests.nursery import Nursery

RUN = ("run", "recipe.yaml", "--out", "out")
WITHOUT_LOCKS = """
import fcntl, sys

def flock(file, operation):
    raise OSError(37, "No locks available")

fcntl.flock = flock
from semisup.cli.app import main
main()
"""
"""As some NFS: the system's call is refused, and everything above it is ours and filelock's."""


@pytest.mark.slow
def test_a_file_system_without_locks_is_told_and_no_lock_goes_on(nursery: Nursery, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    code, output = nursery.run(tmp_path, *RUN, code=WITHOUT_LOCKS)
    assert_refused(code, output, "No locks available")
    assert "--no-lock" in output
    code, output = nursery.run(tmp_path, *RUN, "--no-lock", code=WITHOUT_LOCKS)
    assert code == 0, output
    assert tensors(tmp_path / "out")


def test_the_variable_does_as_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(SemisupError, match=r"No locks available.*--no-lock or SEMISUP_NO_LOCK=1"), locked(tmp_path):
        pass
    monkeypatch.setenv(NO_LOCK, "1")
    with locked(tmp_path):
        (tmp_path / "made").touch()


@pytest.fixture
def few_files(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for nine files, as a quota of files."""
    with in_memory(tmp_path / "disk", "size=8m,nr_inodes=9") as place:
        write_recipe(place, "train")
        yield place


@pytest.mark.slow
def test_a_quota_of_files(nursery: Nursery, few_files: Path, single: Path) -> None:
    log = few_files.parent / "output.log"
    for files in range(3, 20, 4):
        for name in ("out", ".semisup"):
            shutil.rmtree(few_files / name, ignore_errors=True)
        assert mount("-o", f"remount,nr_inodes={files}", str(few_files))
        code, output = nursery.run(few_files, *RUN, log=log)
        if code != 0:
            assert_refused(code, output, "No space left on device")
        assert mount("-o", "remount,nr_inodes=1000", str(few_files))
        code, output = nursery.run(few_files, *RUN, log=log)
        assert code == 0, output
        assert tensors(few_files / "out") == tensors(single / "out")


AS_NOBODY = """
import os, sys
from pathlib import Path
os.setgid(65534), os.setuid(65534)
for path in map(Path, sys.argv[1:]):
    try:
        path.read_bytes()
    except PermissionError:
        continue
    print(path)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_reads_what_the_umask_lets_and_no_more(nursery: Nursery, single: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, "train")
    code, output = nursery.run(tmp_path, *RUN, code=f"import os; os.umask(0o077)\n{START}")
    assert code == 0, output
    files = [path for name in ("out", ".semisup") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(files) > 10 and all(path.stat().st_mode & 0o077 == 0 for path in files)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # pytest's own, so that it is the files that refuse
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, *files], capture_output=True, text=True, check=True)
    assert done.stdout == ""


START = "from semisup.cli.app import main\nmain()"
