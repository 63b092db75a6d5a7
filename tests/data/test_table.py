"""A CSV as spreadsheets, pandas and R write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from semisup.data.listing import Listing, list_csv
from semisup.data.table import read_paths
from semisup.errors import SemisupError
from tests.data.data_folders import picture, save

ROWS = [("a/0.png", "cat"), ("a/1.png", "dog"), ("a/2.png", "")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, _ in ROWS:
        save(tmp_path / "pool" / name, picture(0))
    return tmp_path / "pool"


def text(rows: list[tuple[str, ...]], sep: str = ",", head: tuple[str, ...] = ("path", "label")) -> str:
    return "".join(sep.join(row) + "\n" for row in (head, *rows) if row)


def read(root: Path, content: str | bytes) -> Listing:
    table = root.parent / "t.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list_csv(root, table)


DIALECTS: dict[str, tuple[str | bytes, str]] = {
    "plain": (text(ROWS), ""),
    "bom": (text(ROWS).encode("utf-8-sig"), ""),
    "utf-16": (text(ROWS).encode("utf-16"), ""),
    "windows": (text(ROWS).replace("\n", "\r\n"), ""),
    "old mac": (text(ROWS).replace("\n", "\r"), ""),
    "semicolons": (text(ROWS, ";"), "separated by ;"),
    "tabs": (text(ROWS, "\t"), "separated by tabs"),
    "bars": (text(ROWS, "|"), "separated by |"),
    "excel": ("sep=;\n" + text(ROWS, ";"), "separated by ;"),
    "excel, capitals": ("SEP=;\n" + text(ROWS, ";"), "separated by ;"),
    "commas in a name": (text(ROWS, ";", ("path", "label", "seen, by, whom")), "separated by ;"),
    "an empty line first": ("\n" + text(ROWS, ";"), "separated by ;"),
    "put together": (
        text(ROWS[:1]) + "\ufeff" + text(ROWS[1:], head=("Path", "label")),
        "line 3 names the columns once",
    ),
    "excel, commas": ("sep=,\r\n" + text(ROWS), ""),
    "blanks before": (text(ROWS, " , "), ""),
    "a second label": (text([(*row, "x") for row in ROWS], head=("path", "label", "class")), "'label', not 'class'"),
    "no header": (text(ROWS, head=()), "names no columns"),
    "capitals": (text(ROWS, head=("Path", " LABEL")), ""),
    "other names": (text(ROWS, head=("filename", "class")), ""),
    "index": (text([(str(i), *row) for i, row in enumerate(ROWS)], head=("", "path", "label")), ""),
    "blanks": (text(ROWS, ", ") + "\n,,\n", ""),
    "quotes": (text([(f'"{path}"', f'"{label}"') for path, label in ROWS]), ""),
    "backslashes": (text([(path.replace("/", "\\"), label) for path, label in ROWS]), ""),
    "again": (text([*ROWS, ("./a/0.png", "cat")]), "1 row says again what another said: line 5"),
    "nan": (text([(path, label or "nan") for path, label in ROWS]), "1 'nan'"),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_say_the_same(root: Path, name: str) -> None:
    content, note = DIALECTS[name]
    listing = read(root, content)
    assert [(e.part, e.path, e.label) for e in listing.entries] == [("train", p, label or None) for p, label in ROWS]
    assert listing.classes == ["cat", "dog"]
    assert len(listing.notes) == bool(note) and note in " ".join(listing.notes)


@pytest.mark.parametrize("value", ["NA", "None", "-1", "null"])
def test_values_for_no_label_can_be_changed(root: Path, value: str) -> None:
    content = text([*ROWS[:2], (ROWS[2][0], value)])
    assert read(root, content).classes == ["cat", "dog"]
    assert list_csv(root, root.parent / "t.csv", []).classes == sorted(["cat", "dog", value])
    assert list_csv(root, root.parent / "t.csv", ["dog"]).classes == sorted(["cat", value])


def test_splits_as_others_call_them(root: Path) -> None:
    rows = [(*row, split) for row, split in zip(ROWS[:2], ("Train", ""), strict=True)] + [("a/2.png", "cat", "Valid")]
    listing = read(root, text(rows, head=("path", "label", "split")))
    assert [e.part for e in listing.entries] == ["train", "train", "val"]


@pytest.mark.parametrize(
    ("head", "parts", "told"),
    [
        (("path", "label", "set"), ("train", "Test", ""), ["column 'set' says train, val or test and is not read"]),
        (("path", "label", "seen"), ("train", "train", ""), []),
        (("path", "label", "seen"), ("test", "often", ""), []),
        (("path", "label", "split", "first"), ("train", "train", ""), []),
    ],
)
def test_a_column_of_parts_that_is_not_read_is_told(
    root: Path, head: tuple[str, ...], parts: tuple[str, ...], told: list[str]
) -> None:
    extra = [(part, "test")[: len(head) - 2] for part in parts]
    notes = read(root, text([(*row, *more) for row, more in zip(ROWS, extra, strict=True)], head=head)).notes
    assert len(notes) == len(told) and all(words in note for words, note in zip(told, notes, strict=True))


def test_a_class_may_be_called_train_or_test(root: Path) -> None:
    listing = read(root, text([("a/0.png", "train"), ("a/1.png", "test"), ("a/2.png", "")]))
    assert listing.classes == ["test", "train"] and listing.notes == ()


def test_a_row_without_a_path_is_named(root: Path) -> None:
    table = root.parent / "t.csv"
    table.write_text("id,path\n1,pool/a/0.png\n2,\n")
    with pytest.raises(SemisupError, match=r"t\.csv: line 3: no path$"):
        read_paths(table)


@pytest.mark.parametrize("twin", ["a/0.png", "./a/0.png", "a//0.png", "a/../a/0.png"])
def test_two_names_of_one_file_with_two_labels(root: Path, twin: str) -> None:
    with pytest.raises(SemisupError, match=r"line 5: .*0\.png has a row already: dog in train, but cat"):
        read(root, text([*ROWS, (twin, "dog")]))


def test_a_table_of_files_that_are_elsewhere(root: Path) -> None:
    with pytest.raises(SemisupError, match=r"none of its files is there.*did you mean data\.path=") as caught:
        read(root, text([(f"pool/{path}", label) for path, label in ROWS]))
    assert str(root / "pool" / "a" / "0.png") in str(caught.value)


def test_a_file_may_have_a_name_that_is_no_text(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    save(root / name, picture(1))
    listing = read(root, text(ROWS).encode() + b"caf\xe9.png,cat\n")
    assert name in [entry.path for entry in listing.entries if entry.bytes > 0]


def test_what_is_no_table(root: Path) -> None:
    for content, words in [
        (b"", "is empty"),
        (text(ROWS, head=("paths", "label")), "no column 'path' in its first line; did you mean 'paths'?"),
        (text(ROWS, head=("id", "label")), r"'path' in its first line \(id, label\); call it path, or one of file, f"),
        (b"path,label\n\xe9.png,cat\n", "not text in UTF-8 .line 2: .*png,cat.; save it as CSV in UTF-8"),
        (b"path,label\na/0.png,caf\xe9\n", "not text in UTF-8"),
        (b"path,label,\xe9\na/0.png,cat,\n", "not text in UTF-8"),
        (text(ROWS).encode("utf-16-le"), "NUL bytes.; save it as CSV in UTF-8"),
        (text([(*row, "x") for row in ROWS], head=("path", "label", "Label")), "column 'label' is there 2 times"),
        (text([(p, f"{label}, big") for p, label in ROWS]), "line 2: has more cells than the 2 .* names, as 2 more"),
        (
            text([*ROWS, ("a/b,c.png", "dog")]),
            "line 5: has more cells than the 2 that the first line names; write texts",
        ),
    ]:
        with pytest.raises(SemisupError, match=words):
            read(root, content)


def test_a_table_that_is_not_there_or_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    (root / "labels.csv").write_text("path,label\n")
    with pytest.raises(SemisupError, match=r"data\.csv: labels\.csv does not exist .*; there is .*/labels\.csv"):
        list_csv(root, Path("labels.csv"))
    os.mkfifo(root / "pipe.csv")  # which nobody writes to: opening it would wait for ever
    for found in (root, root / "pipe.csv"):
        with pytest.raises(SemisupError, match=r"data\.csv: /.* cannot be read \((a folder|a pipe .*), not a file\)"):
            list_csv(root, found)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('path,label\na/0.png,"cat\na/1.png,dog\n', 2),
        ('path,label\na/0.png,cat\n"a/1.png,dog', 3),
        ('"path,label\na/0.png,cat\n', 1),
        ('path;label\na/0.png;"c;at"\na/1.png;"dog\n', 3),
    ],
)
def test_a_quote_that_is_never_closed_is_named_with_its_line(root: Path, content: str, line: int) -> None:
    with pytest.raises(SemisupError, match=rf"line {line}: a quote .* never closed"):
        read(root, content)


def test_quotes_that_are_part_of_a_text_are_no_mistake(root: Path) -> None:
    listing = read(root, 'path,label\na/0.png,c"at\n"a/1.png","d""og"\n"a/2.png",')
    assert [entry.label for entry in listing.entries] == ['c"at', 'd"og', None]


def test_a_label_over_several_lines_is_a_quote_too_many(root: Path) -> None:
    with pytest.raises(SemisupError, match="line 3: its label goes over several lines"):
        read(root, 'path,label\na/0.png,"cat\na/1.png,dog"\na/2.png,\n')


def test_an_accent_may_be_written_in_either_way(root: Path) -> None:
    """A Mac's names have the accent apart from its letter; a table from elsewhere has them in one."""
    together, apart = "caf\u00e9.png", "cafe\u0301.png"
    for there, written in ((together, apart), (apart, together)):
        file = save(root / there, picture(1))
        rows = [*ROWS, (written, "cat")]
        found = [entry for entry in read(root, text(rows)).entries if entry.path == there]
        assert [entry.bytes > 0 for entry in found] == [True]
        assert read_paths_of(root, written) == [root / there]
        file.unlink()
    for name in (together, apart):  # both are there: each is itself
        save(root / name, picture(1))
    assert {together, apart} < {entry.path for entry in read(root, text([*ROWS, (together, ""), (apart, "")])).entries}


def read_paths_of(root: Path, path: str) -> list[Path]:
    (root / "t.csv").write_text(f"path\n{path}\n")
    return read_paths(root / "t.csv")


def test_classes_that_look_the_same_are_told_by_their_signs(root: Path) -> None:
    head = ("path", "label", "split")
    rows = [("a/0.png", "caf\u00e9", "train"), ("a/1.png", "dog", "train"), ("a/2.png", "cafe\u0301", "test")]
    with pytest.raises(SemisupError, match=r"'caf\\xe9' looks the same and has: .* not as 'cafe\\u0301'"):
        read(root, text(rows, head=head))
    (note,) = read(root, text([(*row[:2], "train") for row in rows], head=head)).notes
    assert note.startswith(r"'cafe\u0301' and 'caf" + "\u00e9' are read as 2 classes")
