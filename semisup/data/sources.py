"""Every data set by name, read into `ImageData`; nothing is imported or read before it is asked for."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semisup.data.addresses import is_address, require_address
from semisup.data.downloads import CACHE, Download, download, read_cifar10, read_cifar100, read_stl10, read_svhn
from semisup.data.entries import some
from semisup.data.folder import missing_settings, read_folder
from semisup.data.image_data import ImageData
from semisup.data.npz import read_npz, without_duplicates
from semisup.data.shaped import held_out, long_tail, with_foreign
from semisup.data.store import Watch, unwatched
from semisup.data.table import UNLABELED
from semisup.errors import SemisupError, nearest, not_there, raise_all
from semisup.files import at_home
from semisup.settings.schema import DataConfig

__all__ = ["SOURCES", "at_hand", "check_source", "load_data"]

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_FASHION = Download("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", ("FashionMNIST",))
_FASHION_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
_FASHION_CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_FOLDER_KEYS = ("csv", "fit", "channels", "max_bad", "cache", "memory")
_OWN_KEYS = ("allow_leakage", "drop_leaks", "allow_conflicts", "unlabeled_values")
_DIGITS_SPLIT_SEED = 1797  # of the fixed test set; never the recipe's seed, so that all runs share one test set


def load_data(config: DataConfig, watch: Watch = unwatched) -> ImageData:
    """Read a data set, bring its images to `config.size` and settle whether flips are allowed.

    Args:
        config: the recipe's `data`.
        watch: shows the progress of decoding a folder for the first time.

    Raises:
        SemisupError: unknown source, files missing or broken, or a download that cannot start (within seconds).
    """
    path = check_source(config)
    if config.source == "folder":
        data = read_folder(config, watch)
    else:
        data = _read_npz(path, config) if config.source == "npz" else SOURCES[config.source](path)
    if config.foreign is not None:
        data = with_foreign(data, config.foreign)
    data = data if config.long_tail is None else long_tail(data, config.long_tail)
    if config.size is not None and config.size != data.size:
        x_val = None if data.x_val is None else _resize(data.x_val, config.size)
        x_train, x_test = _resize(data.x_train, config.size), _resize(data.x_test, config.size)
        data = replace(data, x_train=x_train, x_test=x_test, x_val=x_val)
    data = data if config.flip is None else replace(data, flip=config.flip)
    data = data if config.holdout is None else held_out(data, config.holdout, config.fold)
    return replace(data, notes=(*data.notes, *_not_measured(data)))


def _not_measured(data: ImageData) -> list[str]:
    """Say of which classes there are no validation or test images where there are of others."""
    notes = []
    for part, labels in (("validation", data.y_val), ("test", data.y_test)):
        seen = set() if labels is None else set(labels.tolist())
        absent = [f"'{name}'" for k, name in enumerate(data.classes) if k not in seen]
        if seen and absent:
            notes.append(f"the {part} images have none of {some(absent)}; figures say nothing of that")
    return notes


def check_source(config: DataConfig) -> Path | None:
    """Return where a data set is, without reading anything; None: at the source's usual places.

    Raises:
        SemisupError: unknown source, a key that is missing or that the source does not read, or a path that does not
            exist or is of the wrong kind.
    """
    if config.source != "folder" and config.source not in SOURCES:
        raise SemisupError(
            f"data.source: unknown source '{config.source}'{nearest(config.source, [*SOURCES, 'folder'])}"
        )
    raise_all(_of_folder(config) if config.source == "folder" else _of_own_data_only(config))
    if config.fold >= config.folds:
        raise SemisupError(f"data.fold: data.holdout makes {config.folds} of them, from 0: there is no {config.fold}")
    return _folder_or_file(config)


def at_hand(config: DataConfig) -> bool:
    """Say whether a data set can be read within a second or two: nothing has to be decoded or downloaded for it."""
    debian = config.source == "fashion_mnist" and config.path is None and _DEBIAN.is_dir()
    return config.source in ("digits", "npz") or debian


def _of_folder(config: DataConfig) -> list[str]:
    """Complain about settings that source folder lacks, or that it would ignore."""
    refused = [key for key in ("long_tail", "foreign") if getattr(config, key) is not None]
    return missing_settings(config) + [
        f"data.{key}: not for source folder, all of whose images count" for key in refused
    ]


def _of_own_data_only(config: DataConfig) -> list[str]:
    """Complain about settings that another source would ignore."""
    default = DataConfig()
    readers = dict.fromkeys(_FOLDER_KEYS, "only source folder reads it")
    if config.source != "npz":
        readers |= dict.fromkeys(_OWN_KEYS, "only sources folder and npz read it")
    return [f"data.{key}: {by}" for key, by in readers.items() if getattr(config, key) != getattr(default, key)]


def _folder_or_file(config: DataConfig) -> Path | None:
    """Return `data.path` as an existing path of the right kind."""
    if config.path is None:
        return None
    if config.source == "digits":
        raise SemisupError(f"data.path: source digits comes with scikit-learn and takes no path, not '{config.path}'")
    if is_address(config.path):
        if config.source != "folder":
            raise SemisupError(f"data.path: source {config.source} reads files on this machine, not from addresses")
        require_address(config.path)
        return None
    path = at_home(config.path, "data.path")
    try:
        if config.source == "npz" and path.is_dir():
            raise SemisupError(f"data.path: must be an .npz file, but {path} is a folder")
        if config.source == "folder" and path.suffix.lower() == ".csv" and path.is_file():
            raise SemisupError(
                f"data.path: must be the folder of images; give the table as data.csv={config.path}, and data.path is "
                f"what its paths begin at"
            )
        if config.source != "npz" and path.is_file():
            raise SemisupError(f"data.path: source {config.source} needs a folder, but {path} is a file")
        if path.exists():
            return path
        absent = not_there(path)
    except OSError as error:
        raise SemisupError(f"data.path: {config.path[:200]} cannot be read: {error.strerror}") from error
    raise SemisupError(f"data.path: {absent}")


def _resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale (n, h, w, c) images with PIL's bilinear filter, which averages over all pixels when shrinking."""
    small = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for i, image in enumerate(images):
        # PIL takes gray images without a channel axis.
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        small[i] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(small.shape[1:])
    return small


def _read_digits(path: Path | None) -> ImageData:
    """Read scikit-learn's 1,797 handwritten digits, 8 x 8 gray, 20% of every class held out as test set."""
    table = _digits_table()
    # Values are 0 .. 16 (ink in 4 x 4 pixels).
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1].astype(np.int64)
    test = np.zeros(len(labels), bool)
    random = np.random.RandomState(_DIGITS_SPLIT_SEED)  # numpy promises that its streams never change
    for k in range(10):
        of_class = random.permutation(np.flatnonzero(labels == k))
        test[of_class[: round(0.2 * len(of_class))]] = True
    return ImageData(
        name="digits",
        x_train=images[~test],
        y_train=labels[~test],
        x_test=images[test],
        y_test=labels[test],
        classes=[str(k) for k in range(10)],
        flip=False,
    )


def _digits_table() -> NDArray[np.float64]:
    """Return (1797, 65): pixels and class.

    The file is read where scikit-learn keeps it, because importing scikit-learn takes 1 to 2 s; where a version keeps
    it elsewhere, scikit-learn is asked.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        raise SemisupError("data.source: digits needs scikit-learn; install it with: pip install scikit-learn")
    for folder in spec.submodule_search_locations or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels])


def _read_fashion_mnist(path: Path | None) -> ImageData:
    """Read Fashion-MNIST (60,000 + 10,000 gray images of 28 x 28) from `path`, Debian's folder or the cache."""
    found = _fashion_folder(_DEBIAN if path is None else path)
    if found is None:
        root = at_home(CACHE, "data.path") if path is None else path
        found = _fashion_folder(root)
    if found is None:
        hint = f"install Debian's package dataset-fashion-mnist, or put the four idx files (.gz or not) into {root}"
        download(_FASHION, root, hint)
        found = _fashion_folder(root)
    if found is None:
        raise SemisupError(f"data.source: fashion_mnist was downloaded into {root}, but its files are not there")
    return ImageData(
        name="fashion_mnist",
        x_train=_read_idx(found, "train-images-idx3-ubyte", 3)[..., None],
        y_train=_read_idx(found, "train-labels-idx1-ubyte", 1).astype(np.int64),
        x_test=_read_idx(found, "t10k-images-idx3-ubyte", 3)[..., None],
        y_test=_read_idx(found, "t10k-labels-idx1-ubyte", 1).astype(np.int64),
        classes=list(_FASHION_CLASSES),
        flip=True,
    )


def _fashion_folder(place: Path) -> Path | None:
    """Return the folder with the training images: the place itself, or torchvision's layout under it."""
    for folder in (place, place / "raw", place / "FashionMNIST" / "raw"):
        if any((folder / f"train-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz")):
            return folder
    return None


def _read_idx(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes: 2 zero bytes, type 8, the number of dimensions, their sizes (uint32), the bytes."""
    file = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise SemisupError(f"{file}: cannot be read: {error}") from error
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").astype(np.int64)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + np.prod(shape):
        raise SemisupError(f"{file}: not a whole idx file of bytes in {dimensions} dimensions; fetch it again")
    # A copy that may be written to, in place of `content`: of any other torch would keep a second one.
    return np.frombuffer(content, np.uint8, offset=start).reshape(tuple(shape)).copy()


def _read_npz(path: Path | None, config: DataConfig) -> ImageData:
    if path is None:
        raise SemisupError("data.path: missing; source npz needs the file, e.g. data.path=images.npz")
    data = read_npz(path, UNLABELED if config.unlabeled_values is None else config.unlabeled_values)
    if config.validation and data.x_val is not None:
        raise SemisupError(
            f"data.validation: must be 0 where the data have validation images of their own, not {config.validation}"
        )
    return without_duplicates(data, config)


SOURCES: dict[str, Callable[[Path | None], ImageData]] = {
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "digits": _read_digits,
    "fashion_mnist": _read_fashion_mnist,
    "npz": lambda path: _read_npz(path, DataConfig(source="npz")),
    "stl10": read_stl10,
    "svhn": read_svhn,
}
"""Readers of a path; `folder` needs more settings than that."""
