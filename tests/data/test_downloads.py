from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semisup.data import downloads
from semisup.data.sources import load_data
from semisup.errors import SemisupError
from semisup.settings.schema import DataConfig


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every download address points at a closed port of this machine, and the cache at an empty folder."""
    address = f"http://127.0.0.1:{closed_port()}/"
    for name in ("_CIFAR10", "_CIFAR100", "_SVHN", "_STL10"):
        monkeypatch.setattr(downloads, name, replace(getattr(downloads, name), url=address + name))
    monkeypatch.setattr("semisup.data.sources._FASHION", downloads.Download("FashionMNIST", address, ("FashionMNIST",)))
    monkeypatch.setattr("semisup.data.sources._DEBIAN", tmp_path / "debian")
    for module in ("downloads", "sources"):
        monkeypatch.setattr(f"semisup.data.{module}.CACHE", str(tmp_path / "cache"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def problem(**config: Any) -> str:
    with pytest.raises(SemisupError) as caught:
        load_data(DataConfig(**config))
    return str(caught.value)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write CIFAR-10's files with 4 images each, and tell torchvision their checksums; returns the training images."""
    import torchvision

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (6, 4, 3, 32, 32)).astype(np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    sums = {}
    for i, name in enumerate(names):
        content = pickle.dumps({"data": images[i].reshape(4, -1), "labels": [i, 1, 2, 3]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": [f"class{k}" for k in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    cls = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cls, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(cls, "test_list", [[names[5], sums[names[5]]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": hashlib.md5(meta).hexdigest()})
    return images[:5].reshape(20, 3, 32, 32).transpose(0, 2, 3, 1)


def pack(root: Path, folder: str, archive: str) -> bytes:
    with tarfile.open(root / archive, "w:gz") as tar:
        tar.add(root / folder, folder)
    return (root / archive).read_bytes()


def test_an_existing_torchvision_root_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_cifar(tmp_path / "root", monkeypatch)
    data = load_data(DataConfig(source="cifar10", path=str(tmp_path / "root")))
    assert np.array_equal(data.x_train, images)
    assert data.y_train.tolist()[:8] == [0, 1, 2, 3, 1, 1, 2, 3] and data.y_test.tolist() == [5, 1, 2, 3]
    assert (data.classes[3], data.flip, data.y_train.dtype) == ("class3", True, np.int64)


def test_damaged_files_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    write_cifar(root, monkeypatch)

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "hacked",)

    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Evil()))
    assert problem(source="cifar10", path=str(root)).startswith(f"data.source: CIFAR10 is not in {root}")
    assert not (tmp_path / "hacked").exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", folder
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize("served", [True, False])
def test_a_missing_data_set_is_downloaded_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], served: bool
) -> None:
    import torchvision

    address, folder = server
    images = write_cifar(tmp_path / "made", monkeypatch)
    archive = pack(tmp_path / "made", "cifar-10-batches-py", "cifar-10-python.tar.gz")
    if served:
        (folder / "cifar-10-python.tar.gz").write_bytes(archive)
    url = f"{address}/cifar-10-python.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(downloads, "_CIFAR10", replace(downloads._CIFAR10, url=url))
    if served:
        data = load_data(DataConfig(source="cifar10"))
        assert np.array_equal(data.x_train, images)
        assert (tmp_path / "cache" / "cifar-10-batches-py").is_dir()
    else:
        text = problem(source="cifar10")
        assert "the download of CIFAR10 into" in text and "HTTP Error 404" in text
    assert socket.getdefaulttimeout() is None


def test_an_archive_that_is_there_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    images = write_cifar(tmp_path / "made", monkeypatch)
    archive = pack(tmp_path / "made", "cifar-10-batches-py", "cifar-10-python.tar.gz")
    root = tmp_path / "root"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(archive)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    assert np.array_equal(load_data(DataConfig(source="cifar10", path=str(root))).x_train, images)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.io
    import torchvision

    random = np.random.RandomState(1)
    splits = {}
    images = {}
    for split in ("train", "test"):
        images[split] = random.randint(0, 256, (32, 32, 3, 5)).astype(np.uint8)
        file = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(file, {"X": images[split], "y": np.array([[10], [1], [2], [3], [9]], np.uint8)})
        splits[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    data = load_data(DataConfig(source="svhn", path=str(tmp_path)))
    assert np.array_equal(data.x_train, images["train"].transpose(3, 0, 1, 2))
    assert np.array_equal(data.x_test, images["test"].transpose(3, 0, 1, 2))
    assert data.y_train.tolist() == [0, 1, 2, 3, 9]  # SVHN writes 10 for the digit 0
    assert data.flip is False


def test_stl10_keeps_its_unlabeled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = np.random.RandomState(2).randint(0, 256, (6, 3, 96, 96)).astype(np.uint8)
    contents = {
        "train_X.bin": images[:2].transpose(0, 1, 3, 2).tobytes(),  # column-major images, labels from 1
        "train_y.bin": bytes([1, 10]),
        "unlabeled_X.bin": images[2:5].transpose(0, 1, 3, 2).tobytes(),
        "test_X.bin": images[5:].transpose(0, 1, 3, 2).tobytes(),
        "test_y.bin": bytes([3]),
        "class_names.txt": b"\n".join(f"class{k}".encode() for k in range(10)),
        "fold_indices.txt": b"0 1\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    cls = torchvision.datasets.STL10
    for names in ("train_list", "test_list"):
        known = [[name, hashlib.md5(contents[name]).hexdigest()] for name, _ in getattr(cls, names)]
        monkeypatch.setattr(cls, names, known)
    data = load_data(DataConfig(source="stl10", path=str(tmp_path)))
    assert np.array_equal(data.x_train, images[:5].transpose(0, 2, 3, 1))
    assert data.y_train.tolist() == [0, 9, -1, -1, -1] and data.y_test.tolist() == [2]
    assert (data.classes[9], data.num_classes, data.flip) == ("class9", 10, True)


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "svhn", "stl10", "fashion_mnist"])
def test_without_a_network_the_answer_is_quick(source: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    text = problem(source=source)
    assert time.perf_counter() - start < 1
    assert f"is not in {tmp_path / 'cache'}, and it cannot be downloaded: http://127.0.0.1:" in text
    hint = "install Debian's package dataset-fashion-mnist" if source == "fashion_mnist" else "put "
    assert f"does not answer; {hint}" in text


def test_a_server_that_never_responds_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_REACH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(downloads, "_CIFAR10", replace(downloads._CIFAR10, url=url))
        start = time.perf_counter()
        assert "does not answer" in problem(source="cifar10")
        assert time.perf_counter() - start < 2
        time.sleep(0.2)  # let the asking thread end


def test_a_name_lookup_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        time.sleep(1)
        looked_up.set()
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(downloads, "_REACH_SECONDS", 0.2)
    start = time.perf_counter()
    assert "does not answer" in problem(source="cifar10")
    assert time.perf_counter() - start < 0.9
    assert looked_up.wait(5)


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path]
) -> None:
    monkeypatch.setattr(downloads, "_CIFAR10", replace(downloads._CIFAR10, url=server[0]))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(downloads, "CACHE", str(tmp_path / "file" / "cache"))
    assert "Not a directory" in problem(source="cifar10")
