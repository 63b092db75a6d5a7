"""Data sets in torchvision's own folder layout: used where they lie, downloaded where they are missing."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semisup.data.image_data import ImageData
from semisup.errors import SemisupError
from semisup.files import at_home

__all__ = ["CACHE", "Download", "download", "read_cifar10", "read_cifar100", "read_stl10", "read_svhn"]

CACHE = "~/.cache/semisup"
"""Folder of what is downloaded and decoded, unless a recipe names another."""
_REACH_SECONDS = 4.0  # to find out that there is no network
_STALL_SECONDS = 30.0  # without a byte, after which a download is given up


@dataclass(frozen=True)
class Download:
    """One data set of torchvision.

    Attributes:
        cls: its class in `torchvision.datasets`.
        url: what is fetched, or its folder; asked first, to see whether there is a network.
        files: names under the root folder; if none is there, the data set is not there.
    """

    cls: str
    url: str
    files: tuple[str, ...]


_CIFAR10 = Download(
    "CIFAR10",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
)
_CIFAR100 = Download(
    "CIFAR100",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ("cifar-100-python", "cifar-100-python.tar.gz"),
)
_SVHN = Download("SVHN", "http://ufldl.stanford.edu/housenumbers/train_32x32.mat", ("train_32x32.mat",))
_STL10 = Download(
    "STL10", "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", ("stl10_binary", "stl10_binary.tar.gz")
)


def read_cifar10(path: Path | None) -> ImageData:
    """Read CIFAR-10: 50,000 + 10,000 color images of 32 x 32, 10 classes."""
    return _read_cifar("cifar10", _CIFAR10, path)


def read_cifar100(path: Path | None) -> ImageData:
    """Read CIFAR-100: 50,000 + 10,000 color images of 32 x 32, 100 classes."""
    return _read_cifar("cifar100", _CIFAR100, path)


def read_svhn(path: Path | None) -> ImageData:
    """Read SVHN: 73,257 + 26,032 color images of house numbers, 32 x 32, without the `extra` set."""
    train, test = (_torchvision(_SVHN, path, split=split) for split in ("train", "test"))
    return ImageData(
        name="svhn",
        x_train=_to_nhwc(train.data),
        y_train=np.asarray(train.labels, np.int64),
        x_test=_to_nhwc(test.data),
        y_test=np.asarray(test.labels, np.int64),
        classes=[str(k) for k in range(10)],
        flip=False,
    )


def read_stl10(path: Path | None) -> ImageData:
    """Read STL-10: 5,000 labeled + 100,000 unlabeled + 8,000 test color images of 96 x 96 (3 GB of memory)."""
    train, test = (_torchvision(_STL10, path, split=split) for split in ("train+unlabeled", "test"))
    return ImageData(
        name="stl10",
        x_train=_to_nhwc(train.data),
        y_train=np.asarray(train.labels, np.int64),
        x_test=_to_nhwc(test.data),
        y_test=np.asarray(test.labels, np.int64),
        classes=list(train.classes),
        flip=True,
    )


def download(what: Download, root: Path, hint: str, **options: Any) -> Any:
    """Let torchvision fetch a data set into `root` and return its data set object.

    Args:
        what: the data set.
        root: torchvision's root folder; made if missing.
        hint: what the user can do instead, for the message.
        options: further arguments of the torchvision class, e.g. `split="train"`.

    Raises:
        SemisupError: no network (said within seconds), a stalled or broken download, a folder that cannot be written.
    """
    # An archive that is already there needs no network, only unpacking.
    archived = any(name.endswith(".tar.gz") and (root / name).is_file() for name in what.files)
    if not archived and not _reachable(what.url):
        raise SemisupError(
            f"data.source: {what.cls} is not in {root}, and it cannot be downloaded: {what.url} does not answer; {hint}"
        )
    import torchvision

    try:
        root.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(_STALL_SECONDS):
            return getattr(torchvision.datasets, what.cls)(str(root), download=True, **options)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:  # URLError is an OSError
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise SemisupError(f"data.source: the download of {what.cls} into {root} failed: {error}; {hint}") from error


def _read_cifar(name: str, what: Download, path: Path | None) -> ImageData:
    train, test = (_torchvision(what, path, train=train) for train in (True, False))
    return ImageData(
        name=name,
        x_train=np.ascontiguousarray(train.data),
        y_train=np.asarray(train.targets, np.int64),
        x_test=np.ascontiguousarray(test.data),
        y_test=np.asarray(test.targets, np.int64),
        classes=list(train.classes),
        flip=True,
    )


def _torchvision(what: Download, path: Path | None, **options: Any) -> Any:
    """Return torchvision's data set from `path` or the cache, downloaded there if it is missing.

    torchvision checks every file's MD5 before it reads it, which matters for CIFAR, whose files are pickles.
    """
    root = path if path is not None else at_home(CACHE, "data.path")
    if any((root / name).exists() for name in what.files):
        import torchvision

        try:
            return getattr(torchvision.datasets, what.cls)(str(root), download=False, **options)
        except RuntimeError:  # incomplete or damaged: torchvision fetches what is needed
            pass
    hint = f"put {what.files[-1]} from {what.url} into {root}, or name the folder that has it with data.path"
    return download(what, root, hint, **options)


def _to_nhwc(images: Any) -> Any:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _reachable(url: str) -> bool:
    """Say whether a server answers, through the proxy if one is set, within a few seconds."""
    answered = threading.Event()

    def ask() -> None:
        try:
            head = urllib.request.Request(url, method="HEAD")  # of a table in this package, never from a recipe
            urllib.request.urlopen(head, timeout=_REACH_SECONDS).close()  # nosec B310
        except urllib.error.HTTPError as refusal:  # an answer, if only to say no to HEAD
            refusal.close()
        except (OSError, ValueError, http.client.HTTPException):
            return
        answered.set()

    # In a thread, because looking up a name can hang for half a minute and takes no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    return answered.is_set()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give torchvision's downloads, which have no timeout of their own, this one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
