"""Which folder has which part, whatever it is called."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from semisup.data.entries import class_notes
from semisup.data.listing import list_folders
from semisup.errors import SemisupError
from semisup.text import printable
from tests.data.data_folders import make_root, picture, save


@pytest.mark.parametrize("name", ["train", "Labeled", "labelled"])
def test_other_names_are_read_and_told(tmp_path: Path, name: str) -> None:
    root = make_root(tmp_path / "r")
    (root / "labeled").rename(root / name)
    (root / "test").rename(root / "Test")
    shutil.copytree(root / "Test", root / "valid")
    listing = list_folders(root)
    assert listing.classes == ["ant", "bee", "cat"]
    assert {(e.part, e.path.split("/")[0]) for e in listing.entries} == {
        ("train", name),
        ("train", "unlabeled"),
        ("val", "valid"),
        ("test", "Test"),
    }
    assert [note.split("'")[1::2] for note in listing.notes] == [[name, "labeled"], ["valid", "val"], ["Test", "test"]]


def test_images_next_to_the_folders_are_told(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (root / name).write_bytes(b"x")
    assert list_folders(root).notes == (f"not read: a.jpg, b.PNG in {root}",)


def test_two_folders_for_one_part(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    shutil.copytree(root / "labeled", root / "train")
    assert list_folders(root).notes == (f"not read: train in {root}",), "the exact name wins, the other is told"
    (root / "labeled").rename(root / "Labeled")
    with pytest.raises(SemisupError, match="Labeled and train: both may be the folder 'labeled'"):
        list_folders(root)


def test_classes_right_in_the_root(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    for folder in (root / "labeled").iterdir():
        folder.rename(root / folder.name)
    (root / "labeled").rmdir()
    (root / "code").mkdir()
    listing = list_folders(root)
    assert listing.classes == ["ant", "bee", "cat"]
    assert [e.label for e in listing.entries if e.part == "train"] == [
        *["ant"] * 2,
        *["bee"] * 2,
        *["cat"] * 2,
        *[None] * 8,
    ]
    assert "ant, bee, cat are read as its classes" in listing.notes[0] and "not read: code" in listing.notes[1]


def test_layouts_that_cannot_be_meant(tmp_path: Path) -> None:
    root = make_root(tmp_path / "nested")
    (root / "labeled").rename(root / "animals")
    (root / "labeled").mkdir()
    (root / "animals").rename(root / "labeled" / "animals")
    with pytest.raises(SemisupError, match="the first folder is the class, 'animals', and its folders ant, bee, cat"):
        list_folders(root)
    save(tmp_path / "flat" / "labeled" / "1.png", picture(1))
    with pytest.raises(SemisupError, match=r"labeled: 1 file in no class's folder, e\.g\. labeled/1\.png"):
        list_folders(tmp_path / "flat")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(SemisupError, match=r"a\.zip is a file; unpack it"):
        list_folders(tmp_path / "a.zip")


def test_images_right_in_the_folder_are_told_what_names_their_classes(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "album" / f"{i}.png", picture(i))
    with pytest.raises(
        SemisupError, match=r"2 images lie right in it; a CSV of path,label .* --labels of semisup init"
    ):
        list_folders(tmp_path / "album")


def test_names_of_classes_that_may_mean_something_else() -> None:
    found = " ".join(class_notes(["Cat", "cat", "cafe\u0301", "caf\xe9", "red fox", "red_fox", "unknown", "dog"]))
    for names in ("'Cat' and 'cat'", r"'cafe\u0301' and 'caf" "\xe9'", "'red fox' and 'red_fox'"):
        assert f"{names} are read as 2 classes" in found
    assert "'unknown' may stand for no label" in found and "dog" not in found
    assert "'01' and '1' and '1.0' are read as 3 classes" in " ".join(class_notes(["01", "1", "1.0", "1.5", "2"]))
    assert r"'cat' and '\u200bcat' are read as 2 classes" in class_notes(["cat", "\u200bcat"])[0]
    assert class_notes(["cat", "cats", "dog", "0", "1", "10", "100", "0.5", "1.05"]) == []


def test_no_name_of_a_file_moves_the_cursor() -> None:
    assert printable("a\x1b[31m\nb \xe9.png") == "a\\x1b[31m\\nb \xe9.png"
    assert printable("a\u2028b \u05d0 \U0001f468\u200d\U0001f52c") == "a\\u2028b \u05d0 \U0001f468\u200d\U0001f52c"


@pytest.mark.parametrize("sign", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_no_name_of_a_file_turns_what_is_read(sign: str) -> None:
    assert printable(f"photo{sign}gpj.exe") == f"photo\\u{ord(sign):04x}gpj.exe"
