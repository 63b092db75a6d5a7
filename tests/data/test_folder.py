"""A folder of one's own, or a CSV, as a data set."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from semisup.data import ImageData, channel_statistics, is_mapped, load_data
from semisup.data.listing import list_folders
from semisup.data.walk import images_below
from semisup.errors import SemisupError
from semisup.settings import DataConfig
from tests.data.data_folders import make_root, picture, save, settings


def problem(root: Path, **others: object) -> str:
    with pytest.raises(SemisupError) as caught:
        load_data(settings(root, **others))
    return str(caught.value)


def arrays(data: ImageData) -> list[np.ndarray]:
    return [data.x_train, data.y_train, data.x_test, data.y_test]


# Layout


def test_folders_become_parts_and_classes(tmp_path: Path) -> None:
    data = load_data(settings(make_root(tmp_path / "r", val=3)))
    assert data.classes == ["ant", "bee", "cat"]
    assert (data.name, data.size, data.channels, data.flip, data.notes) == ("folder", 24, 3, False, ())
    assert data.y_train.tolist() == [0, 0, 1, 1, 2, 2, *[-1] * 8], "sorted by path: labeled/ant, ..., unlabeled"
    assert data.y_test.tolist() == [0, 0, 1, 2]
    assert data.y_val is not None and data.x_val is not None
    assert data.y_val.tolist() == [0, 1, 2]
    assert np.array_equal(data.x_train[1], picture(3)) and np.array_equal(data.x_train[6], picture(6))
    assert np.array_equal(data.x_val[2], picture(16)) and np.array_equal(data.x_test[3], picture(19))
    assert {array.dtype for array in (data.y_train, data.y_test, data.y_val)} == {np.dtype(np.int64)}


def test_dark_images_of_any_part_are_told(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r", val=3)
    for k, file in enumerate(sorted((root / "test").rglob("*.png"))):
        save(file, picture(100 + k) // 16)
    (note,) = load_data(settings(root)).notes
    assert note.startswith("the brightest value of the first 4 test images is 15 of 255")


def test_only_labeled_is_needed(tmp_path: Path) -> None:
    data = load_data(settings(make_root(tmp_path / "r", unlabeled=0, test=0)))
    assert (len(data.x_train), data.x_test.shape, data.x_val) == (6, (0, 24, 24, 3), None)


def test_images_are_found_at_any_depth_through_links_and_whatever_their_names(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    save(root / "labeled/ant/deep/er/x.PNG", picture(50))
    save(tmp_path / "elsewhere/y.jpg", picture(51))
    (root / "unlabeled" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "unlabeled" / "round").symlink_to(root)
    os.link(save(tmp_path / "z.png", picture(52)), root / "unlabeled" / "without suffix")
    for name in (".DS_Store", "._a.png", ".hidden/a.png", "Thumbs.db", "desktop.ini", "__MACOSX/a.png", "notes.txt"):
        (root / "unlabeled" / name).parent.mkdir(exist_ok=True)
        (root / "unlabeled" / name).write_bytes(b"x")
    os.mkfifo(root / "unlabeled" / "pipe.png")  # opening it would wait for ever
    save(root / "unlabeled" / "album.jpg" / "a.png", picture(53))
    (root / "round").symlink_to(root)
    data = load_data(settings(root, allow_leakage=True))
    assert data.notes[0] == f"not read: round in {root}"
    assert data.notes[1].startswith("1 file that is no image, by name or content, not read: unlabeled/notes.txt")
    assert (data.y_train == 0).sum() == 3
    # unlabeled/round leads to the root, whose own unlabeled folder is one of those above: 7 + 4 images, once.
    assert len(data.x_train) == 7 + 8 + 1 + 1 + 1 + 7 + 4


def test_gray_and_size(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    gray, small = load_data(settings(root, channels=1)), load_data(settings(root, size=12))
    assert gray.x_train.shape == (14, 24, 24, 1) and small.x_train.shape == (14, 12, 12, 3)
    assert len({load_data(settings(root)).hash, gray.hash, small.hash}) == 3


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    name = os.fsdecode(b"labeled/\xe9t\xe9/1.png")
    save(root / name, picture(70))
    (root / os.fsdecode(b"unlabeled/\xff.png")).write_bytes(b"")
    data = load_data(settings(root, max_bad=0.1))
    assert data.classes == ["ant", "bee", "cat", r"\udce9t\udce9"]
    assert r"unlabeled/\udcff.png (empty)" in data.notes[0]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    assert "data.size: missing" in problem(root, size=None)
    assert "data.path: missing" in problem(root, path=None)
    assert "does not exist; did you mean 'r'?" in problem(tmp_path / "rr")
    with pytest.raises(SemisupError, match=r"data\.path: .*/rr does not exist; did you mean 'r'\?"):
        list_folders(tmp_path / "rr")
    (root / "labeled").rename(root / "labelld")
    assert "has no folder 'labeled'" in problem(root) and "'labelld'; did you mean 'labeled'?" in problem(root)
    assert f"r has a folder 'labeled': did you mean data.path={tmp_path / 'up' / 'r'}?" in problem(
        make_root(tmp_path / "up" / "r").parent
    )
    (tmp_path / "flat" / "dogs").mkdir(parents=True)
    assert problem(tmp_path / "flat").endswith("; its folders are dogs")
    (tmp_path / "none").mkdir()
    assert problem(tmp_path / "none").endswith("; it has no folders")


def test_wrong_layouts_are_one_message(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    save(root / "labeled" / "stray.png", picture(60))
    save(root / "test" / "dog" / "1.png", picture(61))
    text = problem(root)
    assert "labeled: 1 file in no class's folder, e.g. labeled/stray.png" in text
    assert "test: class 'dog' has no labeled training image" in text
    save(tmp_path / "one" / "labeled" / "ant" / "1.png", picture(0))
    assert "at least two classes, and there is only 'ant'" in problem(tmp_path / "one")


def test_other_sources_refuse_the_keys() -> None:
    from semisup.settings.schema import DataConfig

    with pytest.raises(SemisupError) as caught:
        load_data(DataConfig(channels=3, memory=0.5))
    assert "data.channels: only source folder reads it" in str(caught.value)
    assert "data.memory: only source folder reads it" in str(caught.value)


# CSV


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("path", "label", "split")) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_a_csv_in_place_of_folders(tmp_path: Path) -> None:
    root = tmp_path / "pool"
    for i in range(6):
        save(root / f"{i}.png", picture(i))
    outside = save(tmp_path / "outside.png", picture(9))
    table = [
        ("3.png", "b", ""),
        ("0.png", " a ", "train"),
        ("1.png", "", ""),
        (str(outside), "b", ""),
        ("2.png", "a", "test"),
    ]
    path = write_csv(tmp_path / "t.csv", table)
    data = load_data(settings(root, csv=path))
    assert data.classes == ["a", "b"]
    found = {image.tobytes(): label for image, label in zip(data.x_train, data.y_train.tolist(), strict=True)}
    assert found == {picture(i).tobytes(): y for i, y in ((0, 0), (1, -1), (3, 1), (9, 1))}
    assert np.array_equal(data.x_test, picture(2)[None]) and data.y_test.tolist() == [0]
    plain = write_csv(tmp_path / "p.csv", [row[:2] for row in table], ("path", "label"))
    assert len(load_data(settings(root, csv=plain)).x_train) == 5


def test_a_label_that_changes_in_the_csv_changes_the_hash_and_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pool"
    for i in range(4):
        save(root / f"{i}.png", picture(i))
    rows = [("0.png", "a"), ("1.png", "b"), ("2.png", "a"), ("3.png", "")]
    path = write_csv(tmp_path / "t.csv", rows, ("path", "label"))
    before = load_data(settings(root, csv=path))
    write_csv(tmp_path / "t.csv", [*rows[:3], ("3.png", "b")], ("path", "label"))
    monkeypatch.setattr("semisup.data.decoders.decode", None)  # would fail
    after = load_data(settings(root, csv=path))
    assert after.hash != before.hash and after.y_train.tolist() == [0, 1, 0, 1]


def test_problems_of_a_csv(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    rows = [("", "a", ""), ("x.png", "a", "tset"), ("y.png", "", "val"), ("z.png", "a", ""), ("z.png", "b", "")]
    text = problem(root, csv=write_csv(tmp_path / "t.csv", rows))
    for words in (
        "line 2: no path",
        "line 3: unknown split 'tset'; did you mean 'test'?",
        "line 4: y.png is in split val and has no label",
        "line 6: z.png has a row already",
    ):
        assert words in text
    assert "no column 'path'" in problem(root, csv=write_csv(tmp_path / "u.csv", [], ("paths", "label")))
    assert "does not exist" in problem(root, csv=str(tmp_path / "none.csv"))
    (tmp_path / "b.csv").write_bytes(b"path,label\n\xff,a\n")
    assert "not text in UTF-8" in problem(root, csv=str(tmp_path / "b.csv"))
    many = problem(root, csv=write_csv(tmp_path / "m.csv", [("", "a", "")] * 50))
    assert "and 40 more" in many
    assert "give the table as data.csv=" in problem(root, path=str(tmp_path / "t.csv"))


# Bad files and leaks


def spoil(root: Path, count: int = 3) -> None:
    whole = next((root / "labeled" / "ant").iterdir()).read_bytes()
    for i, content in enumerate([whole[:200], b"", b"hello"][:count]):
        (root / "unlabeled" / f"bad{i}.png").write_bytes(content)


def test_bad_files_are_left_out_and_listed(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    clean = load_data(settings(root))
    spoil(root)
    data = load_data(settings(root, max_bad=0.2))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(data), arrays(clean), strict=True))
    assert data.hash == clean.hash
    (note,) = data.notes
    assert note.startswith("3 of 21 files cannot be read and are left out: unlabeled/bad0.png (not a readable image (")
    with Path(note.split(": ")[-1]).open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["path"] for row in listed] == [f"unlabeled/bad{i}.png" for i in range(3)]
    assert [row["reason"] for row in listed[1:]] == ["empty", "not a PNG, JPEG, WebP, TIFF or BMP image"]
    for file_ in (root / "unlabeled").glob("bad*"):
        file_.unlink()
    assert load_data(settings(root)).notes == ()


def test_more_bad_files_than_allowed_stop(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r", unlabeled=89, test=4)
    spoil(root, 1)
    assert len(load_data(settings(root)).notes) == 1, "1 of 100 is allowed by default"
    spoil(root, 2)
    text = problem(root)
    assert text.startswith("data.max_bad: 2 of 101 files cannot be read, more than 0.01 of all: unlabeled/bad0.png (")
    assert "bad_files.csv" in text
    assert len(load_data(settings(root, max_bad=0.02)).x_train) == 6 + 89


def test_a_class_without_a_readable_image_stops(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r", labeled=3)
    (root / "labeled/bee/0001.png").write_bytes(b"")
    assert problem(root, max_bad=1) == "data.path: no image of class 'bee' can be read"


@pytest.mark.parametrize("part", ["labeled/ant", "unlabeled"])
def test_a_test_image_among_the_training_images_stops(tmp_path: Path, part: str) -> None:
    root = make_root(tmp_path / "r")
    copy = save(root / part / "copy.bmp", picture(14))  # other bytes than the PNG's, the same pixels
    text = problem(root)
    assert text.startswith("data.allow_leakage: 1 test or validation image is also among the images before them")
    assert f"test/ant/0000.png = {copy.relative_to(root)}" in text
    data = load_data(settings(root, allow_leakage=True))
    assert len(data.x_train) == 15 and "leakage" in data.notes[0]
    (leaks,) = (tmp_path / "cache").rglob("leaks.csv")
    assert leaks.read_text() == f"path,same_as\ntest/ant/0000.png,{copy.relative_to(root)}\n"
    for memory in (0, 4):
        dropped = load_data(settings(root, drop_leaks=True, memory=memory))
        assert (len(dropped.x_train), dropped.y_test.tolist()) == (15, [0, 1, 2])
        assert np.array_equal(dropped.x_test[0], picture(17)) and dropped.notes[0].startswith("left out: 1 test")
    assert dropped.hash != data.hash


def test_copies_within_a_part_are_no_leak(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    save(root / "unlabeled" / "copy.png", picture(0))
    save(root / "test" / "ant" / "copy.png", picture(14))
    assert load_data(settings(root)).notes == ()


def test_a_test_image_among_the_validation_images_stops(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r", val=3)
    save(root / "test" / "cat" / "copy.png", picture(14))
    assert "test/cat/copy.png = val/ant/0000.png" in problem(root)


def test_validation_images_of_its_own_need_no_split(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r", val=3)
    assert "data.validation: must be 0" in problem(root, validation=0.2)


# Memory


def test_a_large_set_is_mapped_and_is_the_same_data(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r", val=3)
    small, large = load_data(settings(root)), load_data(settings(root, memory=0))
    assert not is_mapped(small.x_train) and is_mapped(large.x_train) and is_mapped(large.x_test)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(small), arrays(large), strict=True))
    assert small.hash == large.hash
    assert small.statistics == large.statistics == channel_statistics(small.x_train)
    assert large.resident_bytes == 0 and small.resident_bytes == (14 + 3 + 4) * 24 * 24 * 3


# Labels


def test_one_picture_under_two_classes_stops(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    save(root / "labeled" / "bee" / "copy.bmp", picture(0))  # labeled/ant/0000.png
    text = problem(root)
    assert text.startswith("data.allow_conflicts: 1 image is the same picture as one of another class")
    assert "labeled/bee/copy.bmp (bee) = labeled/ant/0000.png (ant)" in text
    data = load_data(settings(root, allow_conflicts=True))
    assert (data.y_train == 1).sum() == 3 and "copy.bmp (bee)" in data.notes[0]
    (conflicts,) = (tmp_path / "cache").rglob("conflicts.csv")
    assert conflicts.read_text().splitlines()[1] == "labeled/bee/copy.bmp,bee,labeled/ant/0000.png,ant"


def test_a_leak_that_is_left_out_contradicts_nothing(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    save(root / "test" / "bee" / "copy.bmp", picture(0))
    text = problem(root)
    assert "data.allow_conflicts" in text and "data.allow_leakage" in text and "data.drop_leaks=true" in text
    assert len(load_data(settings(root, drop_leaks=True)).x_test) == 4


def test_an_empty_class_folder_is_told(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    (root / "labeled" / "dragon" / "deep").mkdir(parents=True)
    data = load_data(settings(root))
    assert data.classes == ["ant", "bee", "cat"] and "labeled/dragon" in data.notes[0]


def test_another_way_to_make_squares_is_another_store_and_another_set(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    save(root / "unlabeled" / "wide.png", np.concatenate([picture(90), picture(91)], axis=1))
    plain, padded = load_data(settings(root)), load_data(settings(root, fit="pad"))
    assert plain.hash != padded.hash
    assert (padded.x_train != plain.x_train).any((1, 2, 3)).sum() == 1
    assert sorted(path.name.rpartition("-")[2] for path in (tmp_path / "cache").iterdir()) == ["24x3", "pad"]
    with pytest.raises(SemisupError, match=r"data.fit: only source folder reads it"):
        load_data(DataConfig(source="digits", fit="pad"))


def test_what_is_read_whole_names_a_folder_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match=r"gone: cannot be opened \(No such file or directory\)"):
        images_below(tmp_path / "gone", ".")
    (tmp_path / "a.png").touch()
    assert [file.path for file in images_below(tmp_path, ".")] == ["./a.png"]


def test_another_users_home_is_a_name_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell has replaced `~anna` where it was meant; here it is a folder of that name."""
    make_root(tmp_path / "~nosuchuser")
    monkeypatch.chdir(tmp_path)
    data = load_data(settings(Path("~nosuchuser"), cache="~nosuchcache"))
    assert len(data.x_train) == 14
    assert (tmp_path / "~nosuchcache").is_dir()


def test_without_a_home_the_key_to_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a user whom its system does not know."""

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert "data.cache: ~/.cache/semisup/folders cannot be found, as HOME is not set" in problem(
        make_root(tmp_path / "root"), cache=None
    )
    assert "data.path: ~/photos cannot be found" in problem(Path("~/photos"))
