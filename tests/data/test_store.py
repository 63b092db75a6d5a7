"""The memory-mapped store: made by many processes, killed and resumed, kept up to date, read without being loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import semisup.data.folder as folder_module
from semisup.data.decode import Fit, decode
from semisup.data.decoders import decoders
from semisup.data.folder import prepare_folder
from semisup.data.listing import list_folders
from semisup.data.rows import take
from semisup.data.store import BLOCK, Store, prepare
from semisup.errors import SemisupError
from semisup.files import LOCK, locked_file
from semisup.settings.schema import DataConfig
from tests.data.data_folders import make_root, picture, resident, save


def made(root: Path, folder: Path, **options: Any) -> Store:
    return prepare(root, list_folders(root).entries, 24, 3, folder, **options)


def expected(root: Path) -> np.ndarray:
    return np.stack([decode(root / entry.path, 24, 3) for entry in list_folders(root).entries])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images: enough for several workers and two blocks."""
    return make_root(tmp_path_factory.mktemp("images") / "root", labeled=30, unlabeled=250, test=20)


def test_the_store_is_a_plain_numpy_file_of_what_decode_gives(root: Path, tmp_path: Path) -> None:
    store = made(root, tmp_path, workers=1)
    assert np.array_equal(np.load(store.path), expected(root))
    assert np.array_equal(store.images(mapped=True), expected(root))
    assert (store.decoded, store.bad, len(store.good)) == (300, [], 300)
    assert set(contents(tmp_path)) == {"bad_files.csv", store.path.name, "index.json", "lock"}


def test_a_disk_without_room_is_said_before_anything_is_decoded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the files that were begun are closed."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(SemisupError, match=r"data\.cache: the decoded images need 0\.0 GiB more"):
        made(root, tmp_path)
    assert not [file.path for file in psutil.Process().open_files() if file.path.endswith((".npy", ".jsonl"))]


def test_workers_give_the_same_store(root: Path, tmp_path: Path) -> None:
    made(root, tmp_path / "one", workers=1)
    made(root, tmp_path / "three", workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


class Dying:
    """A call that ends the process which is sent it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


def test_a_worker_that_dies_is_a_message(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.data.decoders._decode_chunk", Dying())
    with pytest.raises(SemisupError, match="a process that decoded images died"):
        made(root, tmp_path, workers=2)
    monkeypatch.undo()
    assert made(root, tmp_path, workers=1).decoded == 300


def test_progress_is_told(root: Path, tmp_path: Path) -> None:
    told: list[Any] = []

    @contextmanager
    def watch(what: str, total: int) -> Iterator[Callable[[int], None]]:
        told.append((what, total))
        yield told.append

    made(root, tmp_path, workers=1, watch=watch)
    assert told == [(f"decoding {root}", 300), 0, BLOCK, 300]
    told.clear()
    made(root, tmp_path, watch=watch)
    assert told == [], "there is nothing to do"


# Changes


def test_only_what_has_changed_is_decoded(tmp_path: Path) -> None:
    root, folder = make_root(tmp_path / "r"), tmp_path / "store"
    made(root, folder)
    for change, decoded in [
        (lambda: None, 0),
        (lambda: save(root / "labeled/ant/0001.png", picture(100)), 1),  # added, in the middle of the order
        (lambda: save(root / "unlabeled/deep/0/0000.png", picture(101)), 1),  # edited
        (lambda: (root / "test/ant/0000.png").unlink(), 0),  # removed
        (lambda: os.utime(root / "test/bee/0001.png", ns=(0, 1)), 1),  # touched
        (lambda: (root / "labeled/ant/0000.png").rename(root / "labeled/bee/0.png"), 1),  # moved: another path
    ]:
        change()
        store = made(root, folder)
        assert store.decoded == decoded
        assert np.array_equal(store.images(mapped=False), expected(root))
        assert [record.path for record in store.records] == [entry.path for entry in list_folders(root).entries]
        assert len(list(folder.glob("images-*.npy"))) == 1, "the old array is gone"
        fresh = made(root, tmp_path / "fresh" / str(time.monotonic_ns()))
        assert store.statistics == fresh.statistics and store.path.name == fresh.path.name


def test_a_file_of_the_same_size_and_another_time_is_noticed(tmp_path: Path) -> None:
    root, folder = make_root(tmp_path / "r"), tmp_path / "store"
    path = root / "labeled/ant/0000.bmp"
    save(path, picture(200))
    before = made(root, folder).images(mapped=False)
    size = path.stat().st_size
    save(path, picture(201))
    assert path.stat().st_size == size
    after = made(root, folder).images(mapped=False)
    assert (before != after).any((1, 2, 3)).sum() == 1


def test_a_process_that_has_the_old_array_mapped_keeps_it(tmp_path: Path) -> None:
    root, folder = make_root(tmp_path / "r"), tmp_path / "store"
    old = made(root, folder).images(mapped=True)
    before = old.copy()
    save(root / "labeled/ant/0000.png", picture(100))
    made(root, folder)
    assert np.array_equal(old, before)


@pytest.mark.parametrize("damage", ["index cut", "images cut", "no images", "other version", "no index"])
def test_a_damaged_store_is_made_again(tmp_path: Path, damage: str) -> None:
    root, folder = make_root(tmp_path / "r"), tmp_path / "store"
    store = made(root, folder)
    index = folder / "index.json"
    whole = json.loads(index.read_text())
    if damage == "index cut":
        index.write_bytes(index.read_bytes()[:-9])
    elif damage == "images cut":
        store.path.write_bytes(store.path.read_bytes()[:-1])
    elif damage == "no images":
        store.path.unlink()
    elif damage == "other version":
        index.write_text(json.dumps(whole | {"version": 0}))
    else:
        index.unlink()
    again = made(root, folder)
    assert again.decoded == 18
    assert np.array_equal(again.images(mapped=False), expected(root))


# Interruption


def interrupted(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Decode some files and stop."""
    calls = 0

    def failing(path: Path, size: int, channels: int, fit: Fit) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return decode(path, size, channels, fit)

    with monkeypatch.context() as patch:
        patch.setattr("semisup.data.decoders.decode", failing)
        with pytest.raises(KeyboardInterrupt):
            made(root, folder, workers=1)


def test_an_interrupted_preparation_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(root, tmp_path / "whole", workers=1)
    interrupted(root, tmp_path / "a", monkeypatch, BLOCK + 7)
    assert not (tmp_path / "a" / "index.json").exists()
    store = made(root, tmp_path / "a", workers=1)
    assert store.decoded == 300 - BLOCK
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


@pytest.mark.parametrize("journal", [0, 1, 700, -1, -40])
@pytest.mark.parametrize("images", [0, 100, 5000, -1])
def test_whatever_was_written_when_it_stopped_the_rest_is_made(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: int, images: int
) -> None:
    """Either file cut anywhere, as after a kill or a power cut."""
    folder = tmp_path / "a"
    interrupted(root, folder, monkeypatch, BLOCK + 7)
    for name, end in (("partial.jsonl", journal), ("partial.npy", images)):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:end])
    assert np.array_equal(made(root, folder, workers=1).images(mapped=False), expected(root))


def test_a_folder_that_changes_between_two_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = make_root(tmp_path / "r", labeled=30, unlabeled=250, test=20), tmp_path / "store"
    interrupted(root, folder, monkeypatch, BLOCK + 7)
    (root / "unlabeled/deep/0/0100.png").unlink()
    (root / "unlabeled/deep/0/0102.png").write_bytes(b"no image")
    store = made(root, folder, workers=1)
    assert store.decoded < 299, "what comes before the change is kept"
    assert len(store.bad) == 1
    good = [decode(root / r.path, 24, 3) for r in store.records if r.hash is not None]
    assert np.array_equal(store.images(mapped=False), np.stack(good))


def command(root: Path, cache: Path, workers: int) -> list[str]:
    words = ["semisup", "data", "prepare", str(root), "--size", "24", "--cache", str(cache), "--workers", str(workers)]
    return [sys.executable, "-c", f"import sys; sys.argv = {words!r}; from semisup.cli.app import main; main()"]


def records(cache: Path) -> int:
    """How many whole records the journal has."""
    return sum(max(path.read_bytes().count(b"\n") - 1, 0) for path in cache.rglob("partial.jsonl"))


def test_killed_processes_leave_what_the_next_one_goes_on_with(tmp_path: Path) -> None:
    """`kill -9` of the real command, twice; the store is then that of an uninterrupted run."""
    root = make_root(tmp_path / "r", labeled=30, unlabeled=2000, test=20)
    before = 0
    for workers in (2, 1):
        process = subprocess.Popen(command(root, tmp_path / "a", workers), stdout=subprocess.DEVNULL)
        while records(tmp_path / "a") == before:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert before < records(tmp_path / "a") < 2050
        before = records(tmp_path / "a")
    done = subprocess.run(command(root, tmp_path / "a", 1), capture_output=True, text=True, check=True)
    assert f"{2050 - before:,} decoded now, {before:,} before" in done.stdout
    subprocess.run(command(root, tmp_path / "b", 1), stdout=subprocess.DEVNULL, check=True)
    (one,), (other,) = ((tmp_path / name).iterdir() for name in "ab")
    assert contents(one) == contents(other)


def test_two_processes_at_once_make_one_store(root: Path, tmp_path: Path) -> None:
    processes = [subprocess.Popen(command(root, tmp_path, 1), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert sorted("300 decoded now, 0 before" in output for output in outputs) == [False, True], outputs
    assert all("0 decoded now, 300 before" in output or "300 decoded now" in output for output in outputs)


def test_the_tables_of_a_store_are_written_by_who_has_its_lock(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes the lock removes temporary files in the folder, those of a table being written too."""
    free: list[bool] = []
    write = folder_module.write_table

    def noting(path: Path, *content: Any) -> None:
        with locked_file(path.parent / LOCK, wait=False) as got:
            free.append(got)
        write(path, *content)

    monkeypatch.setattr(folder_module, "write_table", noting)
    prepare_folder(DataConfig(source="folder", path=str(root), size=24, cache=str(tmp_path)), workers=1)
    assert free == [False, False]


def test_a_signal_while_processes_decode_leaves_none_of_them(tmp_path: Path) -> None:
    """Of which most tasks are still to do; pytest fails on an error of the pool's own thread."""
    save(tmp_path / "a.png", picture(0, 600))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), decoders(2) as run:
        results = run(tmp_path, ["a.png"] * 4000, 24, 3)
        next(results)
        del results  # as where the signal's error goes through whoever reads them
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 30
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert [child for child in left if "LokyProcess" in " ".join(child.cmdline())] == []


# Memory


def test_taking_rows_of_a_map_holds_no_more_than_them(tmp_path: Path) -> None:
    """400 MB are read, at random and in order, and the process does not grow by more than a tenth of that."""
    images = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.uint8, shape=(32_000, 64, 64, 3))
    for start in range(0, len(images), 1000):
        images[start : start + 1000] = start // 1000
    images.flush()
    del images
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert mapped.nbytes > 390e6
    order = np.random.default_rng(0).permutation(len(mapped))
    before, most, total = resident(), 0, 0
    for rows in (*order.reshape(-1, 400), *(slice(start, start + 400) for start in range(0, len(mapped), 400))):
        part = take(mapped, rows)
        total += int(part[:, 0, 0, 0].astype(np.int64).sum())
        most = max(most, resident() - before)
    assert total == 2 * 1000 * sum(range(32)), "every row was read twice"
    assert most < 40e6
