from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semisup.data.image_data import ImageData
from semisup.data.sources import SOURCES, load_data
from semisup.errors import SemisupError
from semisup.settings.schema import DataConfig

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DIGITS_HASH = "74e2d2ec795314909d74069c517b5206e39ce673083bd66312813e16dbd24dc6"
needs_fashion = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason=f"{DEBIAN} is missing: apt install dataset-fashion-mnist"
)


def problem(**config: object) -> str:
    with pytest.raises(SemisupError) as caught:
        load_data(DataConfig(**config))  # type: ignore[arg-type]
    return str(caught.value)


def check_shapes(data: ImageData) -> None:
    assert data.x_train.dtype == data.x_test.dtype == np.uint8
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert data.x_train.shape[1:] == data.x_test.shape[1:] == (data.size, data.size, data.channels)
    assert len(data.x_train) == len(data.y_train) and len(data.x_test) == len(data.y_test)
    assert data.y_train.min() >= -1 and data.y_test.min() == 0
    assert data.y_train.max() == data.y_test.max() == data.num_classes - 1


# digits


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    data = load_data(DataConfig())
    check_shapes(data)
    assert (data.name, data.num_classes, data.size, data.channels, data.flip) == ("digits", 10, 8, 1, False)
    both = np.concatenate([data.x_train, data.x_test]).reshape(1797, -1)
    mine = sorted((*row, label) for row, label in zip(both.tolist(), [*data.y_train, *data.y_test], strict=True))
    theirs = np.rint(images * 255 / 16).astype(int).tolist()
    assert mine == sorted((*row, label) for row, label in zip(theirs, labels, strict=True))
    assert (both.min(), both.max()) == (0, 255)


def test_digits_have_a_stratified_test_set_that_never_changes() -> None:
    data = load_data(DataConfig(split_seed=5))
    assert np.bincount(data.y_test).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert len(data.x_train) == 1797 - 359
    assert data.hash == DIGITS_HASH  # published results name the data by this hash


def test_digits_do_not_import_scikit_learn_or_torch() -> None:
    code = (
        "import sys; from semisup.data import load_data; from semisup.settings import DataConfig;"
        "load_data(DataConfig(size=16)); print([m for m in ('sklearn', 'torch', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Settings


def test_size_scales_both_parts_once() -> None:
    plain, large = load_data(DataConfig()), load_data(DataConfig(size=16))
    check_shapes(large)
    assert large.size == 16
    expected = Image.fromarray(plain.x_test[3, :, :, 0]).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(large.x_test[3, :, :, 0], np.asarray(expected))
    assert np.array_equal(large.y_train, plain.y_train) and large.hash != plain.hash
    assert load_data(DataConfig(size=8)).hash == plain.hash


def test_shrinking_averages_over_all_pixels(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)  # a checkerboard aliases to 0 or 255 otherwise
    images = np.stack([np.stack([board] * 3, -1)] * 4)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=[0, 1, 0, 1], x_test=images, y_test=[0, 1, 0, 1])
    allowed = {"allow_leakage": True, "allow_conflicts": True}
    data = load_data(DataConfig(source="npz", path=str(tmp_path / "a.npz"), size=16, **allowed))
    assert data.x_train.shape == (4, 16, 16, 3)
    assert abs(data.x_train.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("flip", [True, False])
def test_flip_can_be_set(flip: bool) -> None:
    assert load_data(DataConfig(flip=flip)).flip is flip


def test_the_hash_sees_everything() -> None:
    x, y = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1), np.array([0, 1, -1])
    base = ImageData("a", x, y, x[:2], y[:2], ["p", "q"], False)
    other = [
        ImageData("a", x[::-1], y, x[:2], y[:2], ["p", "q"], False),
        ImageData("a", x.reshape(3, 4, 16, 1), y, x[:2], y[:2], ["p", "q"], False),
        ImageData("a", x, y[::-1], x[:2], y[:2], ["p", "q"], False),
        ImageData("a", x, y, x[1:], y[:2], ["p", "q"], False),
        ImageData("a", x, y, x[:2], y[1:], ["p", "q"], False),
        ImageData("a", x, y, x[:2], y[:2], ["p", "r"], False),
    ]
    assert len({data.hash for data in [base, *other]}) == 7
    same = ImageData("b", np.asfortranarray(x), y.astype(">i8"), x[:2], y[:2], ["p", "q"], True)
    assert same.hash == base.hash


def test_sources_are_named_in_errors() -> None:
    assert problem(source="digitz") == "data.source: unknown source 'digitz'; did you mean 'digits'?"
    text = problem(source="qqqq")
    assert text == f"data.source: unknown source 'qqqq'; valid: {', '.join(sorted([*SOURCES, 'folder']))}"


def test_paths_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "images.npz").write_bytes(b"")
    folder = str(tmp_path)
    npz = str(tmp_path / "images.npz")
    assert problem(source="npz") == "data.path: missing; source npz needs the file, e.g. data.path=images.npz"
    assert problem(source="npz", path=folder) == f"data.path: must be an .npz file, but {folder} is a folder"
    assert problem(source="cifar10", path=npz) == f"data.path: source cifar10 needs a folder, but {npz} is a file"
    wrong = str(tmp_path / "image.npz")
    assert problem(source="npz", path=wrong) == f"data.path: {wrong} does not exist; did you mean 'images.npz'?"
    assert problem(source="npz", path="/no/such/x.npz") == "data.path: /no/such/x.npz does not exist"
    assert problem(source="npz", path="x" * 5000).endswith("cannot be read: File name too long")
    assert problem(path=folder).startswith("data.path: source digits comes with scikit-learn and takes no path")


# Fashion-MNIST


@needs_fashion
def test_fashion_mnist_of_debian() -> None:
    data = load_data(DataConfig(source="fashion_mnist"))
    check_shapes(data)
    assert (data.x_train.shape, data.x_test.shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    assert np.bincount(data.y_train).tolist() == [6000] * 10 and np.bincount(data.y_test).tolist() == [1000] * 10
    assert data.flip is True and data.classes[9] == "Ankle boot"
    # The published mean pixel of the training set.
    assert data.x_train.mean() / 255 == pytest.approx(0.2860, abs=1e-4)


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = random.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", (np.arange(count) % 10).astype(np.uint8))


@pytest.mark.parametrize("folder", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_of_a_folder(tmp_path: Path, folder: str, suffix: str) -> None:
    write_fashion(tmp_path / folder, suffix)
    data = load_data(DataConfig(source="fashion_mnist", path=str(tmp_path)))
    check_shapes(data)
    assert (len(data.x_train), len(data.x_test), data.y_test[13]) == (40, 20, 3)
    assert data.x_train[0, 0, :3, 0].tolist() == np.random.RandomState(0).randint(0, 256, 3).tolist()


@pytest.mark.parametrize("damage", ["not gzip", "cut gzip", "short", "other type", "missing"])
def test_damaged_fashion_mnist_is_named(tmp_path: Path, damage: str) -> None:
    write_fashion(tmp_path, ".gz")
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = file.read_bytes()
    content = {
        "not gzip": b"hello",
        "cut gzip": whole[:-9],
        "short": gzip.compress(gzip.decompress(whole)[:-1]),
        "other type": gzip.compress(b"\0\0\x09\1" + gzip.decompress(whole)[4:]),
    }
    file.unlink() if damage == "missing" else file.write_bytes(content[damage])
    assert problem(source="fashion_mnist", path=str(tmp_path)).startswith(f"{file}: ")
