from __future__ import annotations

import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from semisup.engine.checkpoint import load_checkpoint, save_checkpoint
from semisup.errors import SemisupError
from semisup.files import write_atomically

CPU = torch.device("cpu")


def state() -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    return {
        "weights": {"a": torch.randn(3, 4, generator=rng), "b": torch.tensor(7)},
        "image": torch.randn(2, 3, 4, 4, generator=rng).to(memory_format=torch.channels_last),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "table": {("one", "two"): torch.tensor([float("inf"), -1.0])},
        "ema": None,
        "groups": [{"lr": 0.1, "betas": (0.9, 0.999), "nesterov": True}],
        "step": 3,
        "log": {"loss": 0.25},
    }


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, state())
    assert_same(load_checkpoint(path, CPU), state())
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("where", ["first byte", "middle", "last byte", "cut short", "empty", "longer", "swapped"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, where: str) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    content = bytearray(path.read_bytes())
    at = {"first byte": 0, "middle": len(content) // 2, "last byte": -1}.get(where)
    if at is not None:
        content[at] ^= 1
    damaged: dict[str, bytes | bytearray] = {
        "cut short": content[:-100],
        "empty": b"",
        "longer": content + b"x",
        "swapped": b"semisup" * 100,
    }
    path.write_bytes(damaged.get(where, content))
    with pytest.raises(SemisupError) as caught:
        load_checkpoint(path, CPU)
    assert str(path) in str(caught.value) and "damaged (checksum mismatch)" in str(caught.value)


class Evil:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.touched,))


def test_a_crafted_file_is_refused_without_executing_anything(tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "checkpoint.pt"
    buffer = io.BytesIO()
    torch.save({"step": Evil(touched)}, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(SemisupError) as caught:
        load_checkpoint(path, CPU)
    assert str(path) in str(caught.value) and "not a semisup checkpoint" in str(caught.value)
    assert not touched.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert touched.exists()  # the file was a dangerous one


@pytest.mark.parametrize("payload", [b"", b"no pickle at all", b"PK\x03\x04 no zip file"])
def test_a_file_with_a_checksum_and_nonsense_is_refused(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(hashlib.sha256(payload).digest() + payload)
    with pytest.raises(SemisupError, match="not a semisup checkpoint"):
        load_checkpoint(path, CPU)


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match="cannot be read"):
        load_checkpoint(tmp_path, CPU)


# Kills itself when the third of these calls is made: in the middle of the data, before they are safe, before the
# rename, after it.
KILLED = """
import io, os, signal, sys
from pathlib import Path
from semisup.files import write_atomically

def deadly(function):
    def call(*args):
        os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return call

class Torn(io.FileIO):
    def write(self, data):
        super().write(bytes(data[: len(data) // 2]))
        os.kill(os.getpid(), signal.SIGKILL)

for moment in ("write", "fsync", "replace", "folder"):
    child = os.fork()
    if child == 0:
        path = Path(sys.argv[1]) / moment
        if moment == "write":
            Path.open = lambda self, mode: Torn(self, mode)
        elif moment == "fsync":
            os.fsync = deadly(os.fsync)
        elif moment == "replace":
            Path.replace = deadly(Path.replace)
        else:
            os.open = deadly(os.open)
        write_atomically(path, b"new" * 1000)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    moments = ("write", "fsync", "replace", "folder")
    for moment in moments:
        write_atomically(tmp_path / moment, b"old" * 1000)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 4, done.stderr
    left = {moment: (tmp_path / moment).read_bytes()[:3] for moment in moments}
    assert left == {"write": b"old", "fsync": b"old", "replace": b"old", "folder": b"new"}
    assert all(len((tmp_path / moment).read_bytes()) == 3000 for moment in moments)


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SemisupError) as caught:
        write_atomically(path, b"new")
    assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match="cannot be written"):
        write_atomically(tmp_path / "nowhere" / "file", b"")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IREAD | stat.S_IEXEC)
    if os.access(closed, os.W_OK):
        pytest.skip("root may write anywhere")
    with pytest.raises(SemisupError, match="cannot be written"):
        write_atomically(closed / "file", b"")
