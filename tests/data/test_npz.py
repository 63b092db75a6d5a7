from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semisup.data.npz import read_images, read_npz
from semisup.data.sources import load_data
from semisup.errors import SemisupError
from semisup.settings.schema import DataConfig


def arrays(**changes: Any) -> dict[str, Any]:
    random = np.random.RandomState(0)
    good = {
        "x_train": random.randint(0, 256, (50, 8, 8)).astype(np.uint8),
        "y_train": np.arange(50) % 5,
        "x_test": random.randint(0, 256, (9, 8, 8)).astype(np.uint8),
        "y_test": np.arange(9) % 5,
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def save(path: Path, **changes: Any) -> DataConfig:
    np.savez(path, **arrays(**changes))
    return DataConfig(source="npz", path=str(path))


def problem(path: Path, **changes: Any) -> str:
    with pytest.raises(SemisupError) as caught:
        load_data(save(path, **changes))
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return tmp_path / "images.npz"


def test_gray_without_a_channel_axis(npz: Path) -> None:
    data = load_data(save(npz))
    assert data.x_train.shape == (50, 8, 8, 1) and data.x_test.shape == (9, 8, 8, 1)
    assert np.array_equal(data.x_train[..., 0], arrays()["x_train"])
    assert (data.num_classes, data.classes, data.flip, data.name) == (5, ["0", "1", "2", "3", "4"], False, "npz")
    assert data.y_train.dtype == np.int64


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_dark_images_of_any_part_are_told(npz: Path, part: str) -> None:
    val = {"x_val": np.random.RandomState(1).randint(0, 256, (9, 8, 8)).astype(np.uint8), "y_val": np.arange(9) % 5}
    dark = arrays(**val)[f"x_{part}"] // 16
    (note,) = load_data(save(npz, **{**val, f"x_{part}": dark})).notes
    assert re.match(rf"the brightest value of the first \d+ images of x_{part} is 15 of 255; if", note)


def test_color_unlabeled_and_class_names(npz: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 224, 224, 3), np.uint8)
    y = np.array([0, 1, -1, -1, 0, 1, -1, -1, -1, -1], np.int8)
    y_test, classes = np.uint8([0, 1] * 5), ["cat", "dog"]
    data = load_data(save(npz, x_train=x[:10], y_train=y, x_test=x[10:], y_test=y_test, classes=classes))
    assert data.y_train.tolist() == y.tolist()
    assert (data.classes, data.channels, data.size) == (["cat", "dog"], 3, 224)
    turned = np.array(["cat\x1b[2J", "\u202edog"])
    found = load_data(save(npz, x_train=x[:10], y_train=y, x_test=x[10:], y_test=y_test, classes=turned))
    assert found.classes == [r"cat\x1b[2J", r"\u202edog"], "what no terminal or page obeys"


def test_further_arrays_do_no_harm(npz: Path) -> None:
    assert load_data(save(npz, x_val=np.zeros(3))).num_classes == 5


X = "x_train"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({X: np.zeros((50, 8, 8))}, f"{X}: must be uint8, 0 to 255, not float64; scale 0..1 by 255 and round"),
        ({X: np.zeros((50, 8, 8), np.int32)}, f"{X}: must be uint8, 0 to 255, not int32"),
        ({X: np.zeros((50, 64), np.uint8)}, f"{X}: must be (n, h, w) or (n, h, w, c), not 2-dimensional (50, 64)"),
        ({X: np.zeros((50, 8, 9), np.uint8)}, f"{X}: images must be square, not 8 x 9; pad or crop them"),
        ({X: np.zeros((50, 7, 7), np.uint8)}, f"{X}: images must be 8 to 518 pixels wide and high, not 7"),
        ({X: np.zeros((50, 519, 519), np.uint8)}, f"{X}: images must be 8 to 518 pixels wide and high, not 519"),
        ({X: np.zeros((50, 8, 8, 2), np.uint8)}, f"{X}: must have 1 or 3 channels in its last axis, not 2"),
        (
            {X: np.zeros((50, 3, 8, 8), np.uint8)},
            f"{X}: must have 1 or 3 channels in its last axis, not 8; it looks like (n, c, h, w), which "
            "transpose(0, 2, 3, 1) mends",
        ),
        (
            {X: np.zeros((50, 8, 8, 4), np.uint8)},
            f"{X}: must have 1 or 3 channels in its last axis, not 4; lay it on white, or take [..., :3]",
        ),
        ({X: np.zeros((0, 8, 8), np.uint8)}, f"{X}: must have at least one image"),
        (
            {X: np.zeros((50, 8, 8, 3), np.uint8)},
            "x_test: must have the training images' shape (8, 8, 3), not (8, 8, 1)",
        ),
        ({X: np.zeros((40, 8, 8), np.uint8)}, "y_train: must be as long as x_train, 40, not 50"),
        ({"y_test": np.zeros(8, int)}, "y_test: must be as long as x_test, 9, not 8"),
        ({"y_train": np.zeros((50, 5), int)}, "y_train: must be (n,), one class per image, not 2-dimensional (50, 5)"),
        (
            {"y_train": np.zeros(50)},
            "y_train: must be integers or text, not float64; write whole numbers, and -1 in place of nan",
        ),
        ({"y_train": np.array(["a"] * 50)}, "y_test: must be text, as y_train is"),
        ({"y_test": np.array(["a"] * 9)}, "y_test: must be integers, as y_train is"),
        (
            {"classes": np.frombuffer(b"\xff" * 40, "<U2")},
            "classes: not text (it has numbers that stand for no character)",
        ),
        ({"classes": np.array(["a\ud800"] * 5)}, "classes: not text (it has numbers that stand for no character)"),
        (
            {"y_train": np.eye(5)[np.arange(50) % 5]},
            "y_train: must be (n,), one class per image, not one-hot (50, 5); take its argmax(1)",
        ),
        (
            {"y_train": np.eye(6)[np.arange(50) % 6, :5]},
            "y_train: must be (n,), one class per image, not one-hot (50, 5); take its argmax(1), and -1 where a "
            "row has no 1",
        ),
        ({"y_train": np.full(50, 2**63, np.uint64)}, "y_train: must be classes 0 .. C - 1, not beyond 64 bits"),
        ({"y_train": np.full(50, -1)}, "y_train: needs labeled images of at least two classes, not 0"),
        (
            {"y_train": np.full(50, 0), "y_test": np.zeros(9, int)},
            "y_train: needs labeled images of at least two classes, not 1",
        ),
        ({"y_train": np.arange(50) % 4}, "y_test: class 4 has no labeled training image"),
        ({"y_train": np.arange(50) % 4, "classes": list("abcde")}, "y_test: class 4 'e' has no labeled training image"),
        (
            {"y_train": np.arange(50) % 5 * 2, "y_test": np.zeros(9, int)},
            "y_train: classes must be 0 .. C - 1 without gaps, but they go up to 8 without 1",
        ),
        ({"y_test": np.arange(9) % 5 - 1}, "y_test: every test image needs its class, from 0 on, not -1"),
        ({"classes": ["a", "b"]}, "classes: must be 5 different names, one per class, not ['a', 'b']"),
        (
            {"classes": list("aabcd")},
            "classes: must be 5 different names, one per class, not ['a', 'a', 'b', 'c', 'd']",
        ),
        ({"classes": [1, 2, 3, 4, 5]}, "classes: must be a list of text, not int64 (5,)"),
    ],
)
def test_wrong_arrays(npz: Path, changes: dict[str, Any], message: str) -> None:
    assert problem(npz, **changes) == message


def test_the_arrays_of_medmnist(npz: Path) -> None:
    given = arrays()
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8), np.uint8)
    names = {"train_images": given["x_train"], "train_labels": given["y_train"][:, None]}
    names |= {"test_images": given["x_test"], "test_labels": given["y_test"][:, None]}
    names |= {"val_images": images, "val_labels": np.arange(4)[:, None]}
    config = save(npz, x_train=None, y_train=None, x_test=None, y_test=None, **names)
    data, same = load_data(config), load_data(save(npz))
    assert data.y_train.tolist() == same.y_train.tolist() and np.array_equal(data.x_test, same.x_test)
    assert data.x_val is not None and data.y_val is not None
    assert np.array_equal(data.x_val[..., 0], images) and data.y_val.tolist() == [0, 1, 2, 3]
    save(npz, x_val=images, y_val=np.arange(4))
    with pytest.raises(SemisupError, match=r"data\.validation: must be 0"):
        load_data(config.model_copy(update={"validation": 0.2}))


def test_labels_as_text(npz: Path) -> None:
    text = np.array(["dog", "cat", "emu", "nan", ""])
    for train, test in ((text, np.array(["cat", "dog"])), (text.astype("S"), np.array([b"cat", b"dog"]))):
        config = save(npz, y_train=np.resize(train, 50), y_test=np.resize(test, 9))
        data = load_data(config)
        assert data.classes == ["cat", "dog", "emu"]
        assert data.y_train[:5].tolist() == [1, 0, 2, -1, -1] and data.y_test[:2].tolist() == [0, 1]
        assert len(data.notes) == 2 and "10 'nan'" in data.notes[0]
        assert data.notes[1] == "the test images have none of 'emu'; figures say nothing of that"
        assert load_data(config.model_copy(update={"unlabeled_values": ["emu"]})).classes == ["cat", "dog", "nan"]
    assert problem(npz, y_train=np.resize(text, 50), y_test=np.resize(["cat", "owl"], 9)) == (
        "y_test: class 'owl' has no labeled training image"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"classes": ["cat", "dgo"]}, "y_train: class 'dog' is not in classes; did you mean 'dgo'?"),
        ({"classes": ["cat", "dog", "emu"]}, "classes: class 'emu' has no labeled training image"),
        ({"y_test": ["cat", ""]}, "y_test: every test image needs its class, not ''"),
        ({"y_test": ["nan", "dog"]}, "y_test: every test image needs its class, not 'nan'"),
        ({"y_test": ["Cat", "dog"]}, "y_test: class 'Cat' has no labeled training image; did you mean 'cat'?"),
    ],
)
def test_classes_that_text_and_the_list_of_them_say_differently(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    arrays = {"x_train": x[:4], "y_train": ["cat", "dog"] * 2, "x_test": x[4:], "y_test": ["cat", "dog"]}
    np.savez(tmp_path / "a.npz", **arrays, classes=["dog", "cat"])
    assert read_npz(tmp_path / "a.npz").classes == ["cat", "dog"]
    np.savez(tmp_path / "a.npz", **{**arrays, **change})
    with pytest.raises(SemisupError, match=re.escape(problem)):
        read_npz(tmp_path / "a.npz")


def test_no_label_at_all_where_the_classes_are_named(tmp_path: Path) -> None:
    arrays = {"x_train": np.zeros((5, 8, 8), np.uint8), "y_train": np.full(5, -1), "classes": np.array(["a", "b", "c"])}
    np.savez(tmp_path / "x.npz", **arrays)
    assert read_npz(tmp_path / "x.npz").classes == ["a", "b", "c"]


def test_no_test_set(npz: Path) -> None:
    for changes in ({"x_test": None, "y_test": None}, {"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0)}):
        data = load_data(save(npz, **changes))
        assert (data.x_test.shape, data.y_test.shape, data.y_test.dtype) == ((0, 8, 8, 1), (0,), np.dtype(np.int64))
    assert problem(npz, y_test=None) == "y_test: missing"


def test_test_images_among_the_training_images(npz: Path) -> None:
    x = arrays()["x_train"]
    changes = {"x_test": x[[5, 6, 7]], "y_test": np.array([0, 2, 2])}
    text = problem(npz, **changes)
    assert "data.allow_leakage: 3 test or validation images" in text and "x_test[0] = x_train[5]" in text
    assert "data.allow_conflicts: 1 image is the same picture" in text and "x_test[1] (2) = x_train[6] (1)" in text
    config = save(npz, **changes)
    data = load_data(config.model_copy(update={"allow_leakage": True, "allow_conflicts": True}))
    assert len(data.x_test) == 3 and len(data.notes) == 3
    dropped = load_data(config.model_copy(update={"drop_leaks": True}))
    assert len(dropped.x_test) == 0 and dropped.notes[0].startswith("left out: 3 test")


def test_labels_below_minus_one(npz: Path) -> None:
    text = problem(npz, y_train=np.where(np.arange(50) < 2, -2, np.arange(50) % 5))
    assert text == "y_train: must be classes from 0 on, or -1 for unlabeled, not -2"


def test_labels_that_are_infinite_are_told_without_a_warning(npz: Path) -> None:
    wrong = problem(npz, y_train=np.full((50, 2), [np.inf, -np.inf]))
    assert wrong == "y_train: must be (n,), one class per image, not 2-dimensional (50, 2)"


def test_one_array_with_a_zip_file_behind_it_is_no_npz(npz: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    np.savez(npz, x_train=np.zeros(3))
    npz.write_bytes(array.getvalue() + npz.read_bytes())
    with pytest.raises(SemisupError, match=r"not an \.npz file"):
        read_npz(npz)


def test_huge_labels_cost_no_memory(npz: Path) -> None:
    text = problem(npz, y_train=np.arange(50) % 5 * 10**12)
    assert text.splitlines() == [
        "2 problems",
        "  - y_train: classes must be 0 .. C - 1 without gaps, but they go up to 4000000000000 without 1",
        "  - y_test: class 1 has no labeled training image",
    ]


def test_missing_arrays_and_their_misspellings(npz: Path) -> None:
    text = problem(npz, x_train=None, X_train=np.zeros(3), y_test=None, y_tst=np.zeros(3))
    assert text.splitlines() == [
        "4 problems",
        "  - x_train: missing",
        "  - y_test: missing",
        "  - X_train: unknown array; did you mean 'x_train'?",
        "  - y_tst: unknown array; did you mean 'y_test'?",
    ]


def test_problems_are_reported_together(npz: Path) -> None:
    text = problem(npz, x_train=np.zeros((50, 8, 9)), y_train=np.zeros(50), x_test=None)
    assert text.splitlines() == [
        "4 problems",
        "  - x_test: missing",
        "  - x_train: must be uint8, 0 to 255, not float64; scale 0..1 by 255 and round",
        "  - x_train: images must be square, not 8 x 9; pad or crop them",
        "  - y_train: must be integers or text, not float64; write whole numbers, and -1 in place of nan",
    ]


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("hacked"),)


def test_pickled_objects_are_refused(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(npz.parent)
    text = problem(npz, y_train=np.array([Evil()], dtype=object))
    assert text.startswith("y_train: cannot be read: Object arrays cannot be loaded")
    assert text.endswith("; save it as numbers or text, e.g. .astype(str)")
    assert not Path("hacked").exists()


@pytest.mark.parametrize("content", [b"", b"PK" + bytes(99), b"hello", pickle.dumps([1]), "cut"])
def test_files_that_are_no_npz(npz: Path, content: bytes | str) -> None:
    config = save(npz)
    npz.write_bytes(npz.read_bytes()[:-30] if isinstance(content, str) else content)
    with pytest.raises(SemisupError) as caught:
        load_data(config)
    assert str(caught.value) == f"{npz}: not an .npz file (as written by numpy.savez), or cut short"


def test_a_damaged_array_is_named(npz: Path) -> None:
    config = save(npz)
    content = bytearray(npz.read_bytes())
    content[400] ^= 255  # inside the first array, x_train
    npz.write_bytes(content)
    with pytest.raises(SemisupError, match=r"images.npz: x_train: cannot be read: Bad CRC"):
        load_data(config)


def test_a_header_that_lies_about_its_size(npz: Path) -> None:
    config = save(npz)
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 8, 8), }"
    text += b" " * (118 - len(text) - 1) + b"\n"
    with zipfile.ZipFile(npz, "w") as archive:
        archive.writestr("x_train.npy", header + len(text).to_bytes(2, "little") + text)
        archive.writestr("y_train", b"no array")
    with pytest.raises(SemisupError) as caught:
        load_data(config)
    assert "x_train: cannot be read: " in str(caught.value) and "y_train: not a numpy array" in str(caught.value)


def test_members_that_cannot_be_unpacked_are_named(tmp_path: Path) -> None:
    """Encrypted, packed in a way zipfile does not know, or with a header that is no header."""
    path = tmp_path / "x.npz"
    np.savez(path, x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.arange(4))
    good = path.read_bytes()
    at, central = good.index(b"PK\x03\x04"), good.index(b"PK\x01\x02")

    def refused(*changes: tuple[int, bytes]) -> None:
        content = bytearray(good)
        for place, new in changes:
            content[place : place + len(new)] = new
        path.write_bytes(content)
        with pytest.raises(SemisupError, match="x_train: cannot be read"):
            read_npz(path)

    refused((at + 6, b"\1\0"), (central + 8, b"\1\0"))  # encrypted
    refused((at + 8, b"\x09\0"), (central + 10, b"\x09\0"))  # deflate64
    for header in (b"{'descr': ((((", b"{1:2}     ", b"f(x)      "):
        with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(io.BytesIO(good)) as source:
            for name in source.namelist():
                content = bytearray(source.read(name))
                if name == "x_train.npy":
                    content[10 : 10 + len(header)] = header
                archive.writestr(name, bytes(content))
        with pytest.raises(SemisupError, match="x_train: cannot be read"):
            read_npz(path)


def test_arrays_to_predict_are_named_with_their_file(npz: Path) -> None:
    for images, words in (
        (np.zeros((2, 8, 8, 4), np.uint8), "must have 1 or 3 channels in its last axis, not 4"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"it looks like \(n, c, h, w\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "must have at least one image"),
        (np.zeros((16, 16, 3), np.uint8), r"not \(16, 16, 3\); it looks like one image \(h, w, c\)"),
        (np.zeros((2, 8, 8)), r"must be uint8, 0 to 255, not float64; scale 0..1 by 255"),
    ):
        np.savez(npz, x=images)
        with pytest.raises(SemisupError, match=rf"images.npz: x: .*{words}"):
            read_images(npz)
    np.savez(npz, x=np.zeros((2, 40, 60), np.uint8))
    assert read_images(npz)[1].shape == (2, 40, 60, 1)


def test_a_class_has_a_name(npz: Path) -> None:
    with pytest.raises(SemisupError, match=r"images.npz: classes\[1\]: must not be empty"):
        load_data(save(npz, classes=np.array(["a", " ", "b", "c", "d"])))


def test_classes_that_may_stand_for_no_label_are_told(npz: Path) -> None:
    names = np.array(["a", "b", "unknown", "B", "NaT"])
    data = load_data(save(npz, y_train=names[np.arange(50) % 5], x_test=None, y_test=None))
    assert data.classes == ["B", "a", "b", "unknown"] and (data.y_train == -1).sum() == 10
    assert any("'unknown' may stand for no label" in note for note in data.notes)
    assert any("'B' and 'b' are read as 2 classes" in note for note in data.notes)


def test_names_in_bytes_that_are_no_utf8_stay_apart(npz: Path) -> None:
    names = np.array([b"caf\xe9", b"caf\xe8", b"tea"])
    data = load_data(save(npz, y_train=names[np.arange(50) % 3], x_test=None, y_test=None))
    assert data.classes == ["caf\\xe8", "caf\\xe9", "tea"]


def test_floats_and_capitals_are_told_what_to_write(npz: Path) -> None:
    labels = np.where(np.arange(50) < 9, np.nan, np.arange(50) % 5)
    assert "whole numbers, and -1 in place of nan" in problem(npz, y_train=labels)
    assert "did you mean 'x_train'?" in problem(npz, x_train=None, X_TRAIN=arrays()["x_train"])


def test_what_is_no_file_is_not_opened(npz: Path) -> None:
    os.mkfifo(npz)  # which nobody writes to: opening it would wait for ever
    with pytest.raises(SemisupError, match=r"images\.npz: cannot be read \(a pipe or a device, not a file\)"):
        load_data(DataConfig(source="npz", path=str(npz)))
