"""A CSV of `path,label[,split]` in place of folders, as spreadsheets, pandas and R write it."""

from __future__ import annotations

import csv
import io
import itertools
import os
import posixpath
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from semisup.data.entries import PARTS, Entry, Listing, make_listing, several, some
from semisup.data.remote import Root
from semisup.errors import SemisupError, near, nearest, not_there, raise_all, refuse_special
from semisup.options import HALF
from semisup.text import printable

__all__ = ["UNLABELED", "is_label", "list_csv", "read_labels", "read_paths"]

UNLABELED = ("#N/A", "#NA", "-1", "-1.0", "<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null")
"""Labels that stand for none, unless `data.unlabeled_values` says otherwise: what pandas and R write for nothing."""


def is_label(text: str) -> bool:
    """Tell whether a cell names a class: it is not empty, and does not stand for none."""
    return text.strip() not in ("", *UNLABELED)


_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "category", "target"),
    "split": ("split", "part", "subset"),
}
"""How columns may be called, in capitals too."""
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_DELIMITERS = {",": ",", ";": ";", "\t": "tabs", "|": "|"}
"""What may separate columns, and how it is called."""
_END = "\1"
"""A last row of our own: it is read as a row unless a quote before it is still open."""
_MOST = 10  # problems that are written out


class _Rows:
    """The rows so far: each file once."""

    def __init__(self, root: Root, unlabeled: Sequence[str]) -> None:
        self.root = root
        self.unlabeled = unlabeled
        self.entries: dict[str, tuple[Entry, int]] = {}
        self.problems: list[str] = []
        self.repeated: list[str] = []
        self.without: dict[str, int] = {}

    def add(self, path: str, label: str, split: str, line: int) -> None:
        """Check a row and keep it."""
        label, part = label.strip(), split.strip().lower() or "train"
        part = _SPLITS.get(part, part)
        if label in self.unlabeled:
            self.without[label] = self.without.get(label, 0) + 1
            label = ""
        if not path:
            self.problems.append(f"line {line}: no path")
        elif "\n" in label:
            self.problems.append(f"line {line}: its label goes over several lines; a quote may be missing or too many")
        elif part not in PARTS:
            self.problems.append(f"line {line}: unknown split '{split.strip()}'{nearest(part, PARTS)}")
        elif part != "train" and not label:
            self.problems.append(f"line {line}: {printable(path)} is in split {part} and has no label")
        else:
            self._keep(_entry(self.root, path, label or None, part), line)

    def _keep(self, entry: Entry, line: int) -> None:
        key = _file(self.root, entry.path)  # `a.png` and `./a.png` are one file
        if key not in self.entries:
            self.entries[key] = entry, line
            return
        before, its_line = self.entries[key]
        if (before.label, before.part) == (entry.label, entry.part):
            self.repeated.append(f"line {line}: {printable(entry.path)}")
            return
        said, says = (f"{e.label or 'unlabeled'} in {e.part}" for e in (before, entry))
        self.problems.append(
            f"line {line}: {printable(entry.path)} has a row already: {printable(says)}, but {printable(said)} in line "
            f"{its_line}"
        )

    def notes(self) -> list[str]:
        """Return what a person should know of the rows."""
        notes = []
        if self.without:
            values = ", ".join(f"{count:,} '{value}'" for value, count in sorted(self.without.items()))
            notes.append(
                f"labels that are read as unlabeled: {values}; if one is a class, leave it out of data.unlabeled_values"
            )
        if self.repeated:
            rows = several(len(self.repeated), "row says", "rows say")
            notes.append(f"{rows} again what another said: {some(self.repeated)}")
        return notes


def list_csv(root: Root, table: Path, unlabeled: Sequence[str] = UNLABELED) -> Listing:
    """List the rows of a CSV with the columns `path` (below `root`, or absolute) and `label` (empty: unlabeled).

    A column `split` says `train` (or nothing), `val` or `test`; other columns are not read. Commas, semicolons,
    tabs or bars separate, and Excel's first line `sep=;` is passed over; UTF-8, or UTF-16 with its mark. Without a
    line of names the columns are path, label and perhaps split. Images that are in no row are left out; a file that is
    not there is a bad file.

    Args:
        root: the folder that relative paths begin at.
        table: the file.
        unlabeled: labels that stand for none.

    Raises:
        SemisupError: every problem of the table.
    """
    lines, problems, notes = _read_rows(table, root, ("path", "label"))
    rows = _Rows(root, unlabeled)
    for number, path, label, split in lines:
        rows.add(path, label, split, number)
    entries = [entry for entry, _ in rows.entries.values()]
    problems = [*problems, *rows.problems]
    if len(entries) > 1 and all(entry.bytes < 0 for entry in entries) and not problems:
        problems.append(_nowhere(root, table, entries[0].path))
    if len(problems) > _MOST:
        problems[_MOST:] = [f"and {len(problems) - _MOST} more"]
    raise_all(problems, f"data.csv: {table}")
    return make_listing(root, entries, [], [*notes, *rows.notes()])


def read_paths(table: Path, notes: list[str] | None = None) -> list[Path]:
    """Return the column of paths of a CSV, whatever else it has; they begin at the table's own folder.

    Args:
        table: the file.
        notes: gets what a person should know.

    Raises:
        SemisupError: it cannot be read, has no such column, or nothing in it.
    """
    rows, problems, _ = _read_rows(table, table.parent, ("path",), "")
    raise_all([*problems, *(f"line {line}: no path" for line, path, _, _ in rows if not path)], str(table))
    entries = [_entry(table.parent, path, None, "test") for _, path, _, _ in rows]
    if notes is not None and len(entries) > 1 and all(entry.bytes < 0 for entry in entries):
        notes.append(
            f"{table}: none of its files is there; paths begin at its own folder, e.g. "
            f"{table.parent.absolute() / printable(entries[0].path)}"
        )
    return [table.parent / entry.path for entry in entries]


def read_labels(table: Path, root: Path) -> list[tuple[int, str, str]]:
    """Return line, path and label of every row of a CSV, as they stand there; paths begin at `root`.

    Raises:
        SemisupError: it cannot be read, or a column is missing.
    """
    rows, problems, _ = _read_rows(table, root, ("path", "label"), "")
    raise_all(problems, str(table))
    return [(line, path, label) for line, path, label, _ in rows]


def _read_rows(
    table: Path, root: Root, needed: Sequence[str], key: str = "data.csv: "
) -> tuple[list[tuple[int, str, str, str]], list[str], list[str]]:
    """Return line number, path, label and split of every row, the problems of its columns, and notes.

    Args:
        table: the file.
        root: tells a first row without names from one with them: a file of that path is there.
        needed: columns that must be there.
        key: what a message about the file begins with.

    Raises:
        SemisupError: it cannot be read, or is no text.
    """
    text = _text(table, root, key)
    first, _, rest = text.partition("\n")
    told = re.fullmatch(r'"?sep=([,;\t|])"?', first.strip(" "), re.IGNORECASE)  # a first line for Excel alone
    text = f"\n{rest}" if told else text
    delimiter = told[1] if told else _delimiter(text)
    notes = [] if delimiter == "," else [f"{table}: columns are separated by {_DELIMITERS[delimiter]}"]
    try:
        lines = itertools.chain(io.StringIO(text, newline=""), ["\n", _END])
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise SemisupError(f"{key}{table} is not a CSV file ({error})") from error
    open_quote = [] if rows.pop()[1] == [_END] else [_open_quote(rows, text)]
    header = _names(rows[0][1]) if rows else []
    place = {name: next((header.index(n) for n in names if n in header), None) for name, names in _COLUMNS.items()}
    if rows and place["path"] is None and place["label"] is None and _is_there(root, rows[0][1][0]):
        place = {"path": 0, "label": 1, "split": 2}
        notes.append(f"{table}: its first line names no columns; they are read as path, label and split")
        named = []
    else:
        again = [n for n, row in rows[1:] if _names(row) == header]
        rows = [(n, row) for n, row in rows[1:] if n not in again]
        notes += [f"{table}: line {n} names the columns once more, and is passed over" for n in again]
        named = [header[at] for at in place.values() if at is not None]
    if "label" in needed:
        others = [name for name in header if name in _COLUMNS["label"] and named and name not in named]
        notes += [f"{table}: labels are read from column '{header[place['label'] or 0]}', not '{n}'" for n in others]
        notes += [
            f"{table}: column '{printable(name)}' says train, val or test and is not read; call it split"
            for name in ([] if place["split"] is not None else _parts(rows, header, place.values()))
        ]
    missing = [name for name in needed if place[name] is None]
    problems = [f"no column '{name}' in its first line{_called(name, header)}" for name in missing]
    problems = problems if header else ["is empty"]
    problems += [f"column '{name}' is there {header.count(name)} times" for name in named if header.count(name) > 1]
    problems = open_quote or problems or ([] if not named else _too_wide(rows, header, delimiter))

    def cell(row: list[str], name: str) -> str:
        at = place[name]
        return row[at].rstrip("\0") if at is not None and at < len(row) else ""

    cells = [(n, cell(row, "path"), cell(row, "label"), cell(row, "split")) for n, row in rows if not missing]
    for n, path, label, split in cells:
        if HALF.search(label + split) or (HALF.search(path) and not _is_there(root, path)):
            line = f"line {n}: {printable(path)},{printable(label)}"
            raise SemisupError(f"{key}{table} is not text in UTF-8 ({line}); save it as CSV in UTF-8")
    return cells, problems, notes


def _called(name: str, header: Sequence[str]) -> str:
    """Return which column may be meant, else those that are there and how the wanted one may be called."""
    if meant := near(name, header):
        return meant
    others = ", ".join(_COLUMNS[name][1:])
    return f" ({some([printable(word) for word in header])}); call it {name}, or one of {others}"


def _names(row: Sequence[str]) -> list[str]:
    """Return the cells of a row as names of columns; where files were put together, one may begin with a mark."""
    return [cell.strip().removeprefix("\ufeff").lower() for cell in row]


def _parts(rows: Sequence[tuple[int, list[str]]], header: Sequence[str], read: Collection[int | None]) -> list[str]:
    """Return the columns besides those that are read that have nothing but names of parts, val or test among them."""
    found = []
    for at, name in enumerate(header):
        words = {row[at].strip().lower() for _, row in rows if at < len(row)} - {""}
        parts = {_SPLITS.get(word, word) for word in words}
        if at not in read and parts <= set(PARTS) and parts & {"val", "test"}:
            found.append(name)
    return found


def _too_wide(rows: Sequence[tuple[int, list[str]]], header: Sequence[str], delimiter: str) -> list[str]:
    """Say which rows have more cells than there are columns: what has a delimiter in it is cut, its end is lost."""
    lines = [n for n, row in rows if any(cell.strip() for cell in row[len(header) :])]
    if not lines:
        return []
    more = f", as {len(lines) - 1:,} more" if len(lines) > 1 else ""
    return [
        f"line {lines[0]}: has more cells than the {len(header)} that the first line names{more}; write texts with "
        f"{_DELIMITERS[delimiter]} in quotes, and a name for every column"
    ]


def _delimiter(text: str) -> str:
    """Return what separates columns: that with most names of columns in the first line, else what is there most often.

    A name of another column may have commas.
    """
    first = next((line for line in text.split("\n") if line.strip()), "")
    known = {name for names in _COLUMNS.values() for name in names}

    def names(delimiter: str) -> int:
        return sum(word.strip(' "').lower() in known for word in first.split(delimiter))

    return max(_DELIMITERS, key=lambda delimiter: (names(delimiter), first.count(delimiter)))


def _open_quote(rows: Sequence[tuple[int, list[str]]], text: str) -> str:
    """Say where the quote stands that is never closed: in the row after the last whole one."""
    after = rows[-1][0] if rows else 0
    line = next(n for n, words in enumerate(text.split("\n"), 1) if n > after and '"' in words)
    return (
        f'line {line}: a quote (") is opened and never closed, which would swallow the rows after it; close it, or '
        f'write "" for a quote that is part of a text'
    )


def _text(table: Path, root: Root, key: str) -> str:
    """Return the whole file, with line feeds as line ends."""
    try:
        refuse_special(table, f"{key}{table.absolute()}")
        content = table.read_bytes()
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        # Paths may be as the file system has them, and no text; not what is read as names of columns.
        escaped = not utf16 and content.split(b"\n", 1)[0].isascii()
        text = content.decode("utf-16" if utf16 else "utf-8-sig", "surrogateescape" if escaped else "strict")
    except FileNotFoundError:
        inside = [str(root / table)] if isinstance(root, Path) and (root / table).is_file() else []
        raise SemisupError("; there is ".join([f"{key}{not_there(table)}", *inside])) from None
    except OSError as error:
        raise SemisupError(f"{key}{table.absolute()} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SemisupError(f"{key}{table} is not text in UTF-8 ({error}); save it as CSV in UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text.split("\n", 1)[0]:
        raise SemisupError(f"{key}{table} is not text in UTF-8 (its first line has NUL bytes); save it as CSV in UTF-8")
    return text


def _is_there(root: Root, path: str) -> bool:
    if not isinstance(root, Path):
        return False  # its paths are looked up when they are listed
    try:
        return (root / path).is_file()
    except (OSError, ValueError):
        return False


def _entry(root: Root, path: str, label: str | None, part: str) -> Entry:
    """Return the file of a row, with its size; backslashes and outer blanks are kept where a file is called so."""
    if not isinstance(root, Path):
        name = _file(root, path.replace("\\", "/"))
        for spelled in _spellings(name):
            if (there := root.find(spelled)) is not None:
                return Entry(part, spelled, label, *there)
        return Entry(part, name, label, -1, 0)
    bare = path.strip() or path
    for name in _spellings(path, path.replace("\\", "/"), bare, bare.replace("\\", "/")):
        try:
            found = (root / name).stat()  # an absolute path stays what it is
        except (OSError, ValueError):
            continue
        return Entry(part, name, label, found.st_size, found.st_mtime_ns)
    return Entry(part, path, label, -1, 0)


def _spellings(*names: str) -> list[str]:
    """Return names as they are, then with every accent in its letter, then apart from it, as on a Mac; each once."""
    spelled = (unicodedata.normalize(form, name) for form in ("NFC", "NFD") for name in names)
    return list(dict.fromkeys((*names, *spelled)))


def _file(root: Root, path: str) -> str:
    """Return the one name of a file that may be written in several ways."""
    return os.path.normpath(root.absolute() / path) if isinstance(root, Path) else posixpath.normpath(path)


def _nowhere(root: Root, table: Path, path: str) -> str:
    """Say that no file of the table is there, and where its paths begin if that can be found out."""
    if not isinstance(root, Path):
        return f"none of its files is there; paths begin at data.path, e.g. {root}/{printable(path)}"
    found = [place for place in (Path(), table.parent, root.parent) if _is_there(place, path)]
    hint = f"; it is there from {found[0].absolute()}: did you mean data.path={found[0]}?" if found else ""
    return f"none of its files is there; paths begin at data.path, e.g. {root.absolute() / printable(path)}{hint}"
