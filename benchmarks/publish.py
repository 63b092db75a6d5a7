"""Take finished suites into the repository: their tables to benchmarks/results, from there to README and docs.

    semisup bench digits/budgets
    python benchmarks/publish.py runs/digits-budgets
    python benchmarks/publish.py --join runs/digits-budgets    # a part of it, next to what is committed
    python benchmarks/publish.py --again    # all files of every committed suite, from runs.csv and suite.json

The repository keeps `runs.csv`, `suite.json` and `leaderboard.md` of a suite; of the two showcases its page and
`leaderboard.json` too. `--again` makes these of every suite, where they stand; git ignores them. `--join` is for suites
that take longer than one sitting: what was run takes the place of the committed runs of the same entry, budget, draw
and initialization, and the others stay. Without a folder the command only writes the tables of README and docs anew.
They stand between two comments, the first of which names the suite and, where not all of it is shown, the entries:

    <!-- table: digits-budgets supervised fixmatch -->
    <!-- end of table -->

or the name of a speed benchmark, whose table lies in `results/NAME.md`, and where not all of its lines are shown, words
one of which a line must have:

    <!-- table: throughput fixmatch simclr -->
    <!-- end of table -->

A single number in a sentence is the first one of a cell, named by suite or benchmark, row and column, and 2 for the
second one. The cell may be in any table of the suite's leaderboard or of `results/NAME.md`; `NAME#digits` looks below
that headline alone:

    Accuracy is <!-- value: digits-budgets / fixmatch / 40 -->91.2<!-- end --> with 40 labels.
"""

from __future__ import annotations

import argparse
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from semisup.bench.pages.leaderboard import leaderboard_markdown, readme_table
from semisup.bench.results.facts import read_facts
from semisup.bench.results.rows import read_rows
from semisup.bench.results.summary import summarize
from semisup.bench.results.write import RESULTS, rewrite_results, write_tables
from semisup.errors import SemisupError, nearest

HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- table: (\S+)((?: [^ >-]\S*)*) -->\n).*?(<!-- end of table -->)", re.DOTALL)
VALUE = re.compile(r"(<!-- value: ([^>]+?) -->)[^<]*(<!-- end -->)")
NUMBER = re.compile(r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?")


def with_tables(text: str) -> str:
    """Return a text with every marked table and number made anew from the committed results."""

    def table(match: re.Match[str]) -> str:
        opening, suite, entries, closing = match.groups()
        single = HERE / "results" / f"{suite}.md"
        if single.exists():
            return opening + some_lines(single.read_text(encoding="utf-8"), entries.split()) + closing
        return opening + readme_table(summary_of(suite), entries.split() or None) + closing

    text = MARKED.sub(table, text)
    return VALUE.sub(lambda match: match[1] + value(*match[2].split(" / ")) + match[3], text)


def value(source: str, row: str, column: str, which: str = "1") -> str:
    """Return a number of a cell of a committed table.

    Args:
        source: a suite or benchmark, perhaps with `#` and the headline that the table is below.
        row: the first cell of the line.
        column: the title of the cell's column; of a budget, what stands before the number of labels will do.
        which: 1 for the first number of the cell, 2 for the second.

    Raises:
        SemisupError: no such cell or number, or several cells that differ.
    """
    name, _, headline = source.partition("#")
    lines = tables_of(name, headline)
    cells = {
        line[place]
        for header, *rest in lines
        for line in rest
        for place, title in enumerate(header)
        if place and line[0] == row and column in (title, title.partition(" (")[0])
    } - {""}
    said = f"{source} / {row} / {column}"
    if not cells:
        rows = [line[0] for _, *rest in lines for line in rest]
        columns = [title for header, *_ in lines for title in header[1:]]
        hint = nearest(row, rows) if row not in rows else nearest(column, columns)
        raise SemisupError(f"{said}: no such cell{hint}")
    if len(cells) > 1:
        raise SemisupError(f"{said}: several cells, {', '.join(sorted(cells))}")
    numbers: list[str] = NUMBER.findall(cells.pop())
    if int(which) > len(numbers):
        raise SemisupError(f"{said}: the cell has {len(numbers)} numbers, not {which}")
    return str(numbers[int(which) - 1])


@cache
def tables_of(name: str, headline: str) -> list[list[list[str]]]:
    """Return the tables of a committed result as cells, header first: those below a headline, or all."""
    single = HERE / "results" / f"{name}.md"
    text = single.read_text(encoding="utf-8") if single.exists() else leaderboard_markdown(summary_of(name))
    if headline:
        below = re.search(rf"^#+ {re.escape(headline)}$(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
        text = below[1] if below else ""
    found = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    lines = [[line.strip().strip("|").split("|") for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in line] for i, line in enumerate(table) if i != 1] for table in lines]


@cache
def summary_of(suite: str) -> dict[str, Any]:
    """Return the summary of a committed suite, from its runs; a second or so for the largest."""
    folder = HERE / "results" / suite
    return summarize(read_rows(folder / "runs.csv"), **read_facts(folder).model_dump())


def some_lines(text: str, words: list[str]) -> str:
    """Return the table of a Markdown text, of its lines below the head those with one of the words."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    kept = [line for line in table[2:] if not words or any(word in line for word in words)]
    return "\n".join([*table[:2], *kept]) + "\n"


def both(before: Any, after: Any) -> Any:
    """Return a fact of both parts' provenance, which is a text or a list of texts: once where they agree."""
    if isinstance(before, list):
        return list(dict.fromkeys([*before, *after]))
    return "; ".join(dict.fromkeys([*before.split("; "), after]))


def join(part: Path, whole: Path) -> None:
    """Put a part of a suite's runs into its committed results.

    Args:
        part: a folder of the suite, in which not all of it was run.
        whole: the committed results. Runs of entries that the suite has no longer are left out.

    Raises:
        SemisupError: they are of other data.
    """
    old, new = read_facts(whole), read_facts(part)
    if old.provenance["data hash"] != new.provenance["data hash"]:
        raise SemisupError(f"{part}: of other data than {whole}")
    runs = {
        (new.entries.index(row.entry), row.compute, row.n_labels, row.init, row.draw): row
        for folder in (whole, part)
        for row in read_rows(folder / "runs.csv")
        if row.entry in new.entries
    }
    provenance = {key: both(old.provenance.get(key, value), value) for key, value in new.provenance.items()}
    saved = {key: old.saved[key] + value for key, value in new.saved.items()}
    facts = new.model_copy(update={"provenance": provenance, "saved": saved})
    write_tables(whole, [runs[key] for key in sorted(runs)], facts)


def main() -> None:
    """Copy the folders' results to where their suites have them, then write the tables of README and docs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of finished suites, e.g. runs/digits-budgets")
    parser.add_argument("--join", action="store_true", help="keep the committed runs that the folders do not have")
    parser.add_argument("--again", action="store_true", help="write the committed suites' tables anew first")
    given = parser.parse_args()
    for path in sorted((HERE / "results").glob("*/runs.csv")) if given.again else ():
        rewrite_results(path.parent)
    for folder in given.folders:
        target = HERE / "results" / read_facts(folder).suite
        if given.join and target.is_dir():
            join(folder, target)
            continue
        target.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            shutil.copy(folder / name, target / name)
    for page in pages():
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


def pages() -> list[Path]:
    """Return the files that may have marked tables: the README and the pages of the documentation."""
    return [HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))]


if __name__ == "__main__":
    main()
