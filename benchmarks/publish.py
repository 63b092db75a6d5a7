"""Take finished suites into the repository: their tables to benchmarks/results, from there to README and docs.

    semisup bench digits/budgets
    python benchmarks/publish.py runs/digits-budgets
    python benchmarks/publish.py --again    # all files of every committed suite, from runs.csv and suite.json

The repository keeps `runs.csv`, `suite.json` and `leaderboard.md` of a suite; of the two showcases its page and
`leaderboard.json` too. `--again` makes these of every suite, where they stand; git ignores them. Without a folder the
command only writes the tables of README and docs anew. They stand between two comments, the first of which names the
suite and, where not all of it is shown, the entries:

    <!-- table: digits-budgets supervised fixmatch -->
    <!-- end of table -->

or the name of a speed benchmark, whose table lies in `results/NAME.md`, and where not all of its lines are shown, words
one of which a line must have:

    <!-- table: throughput fixmatch simclr -->
    <!-- end of table -->
"""

from __future__ import annotations

import argparse
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from semisup.bench.pages.leaderboard import readme_table
from semisup.bench.results.facts import read_facts
from semisup.bench.results.rows import read_rows
from semisup.bench.results.summary import summarize
from semisup.bench.results.write import RESULTS, rewrite_results

HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- table: (\S+)((?: [^ >-]\S*)*) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """Return a text with every marked table made anew from the committed results."""

    def table(match: re.Match[str]) -> str:
        opening, suite, entries, closing = match.groups()
        single = HERE / "results" / f"{suite}.md"
        if single.exists():
            return opening + some_lines(single.read_text(encoding="utf-8"), entries.split()) + closing
        return opening + readme_table(summary_of(suite), entries.split() or None) + closing

    return MARKED.sub(table, text)


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


def main() -> None:
    """Copy the folders' results, then write the tables of README and docs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of finished suites, e.g. runs/digits-budgets")
    parser.add_argument("--again", action="store_true", help="write the committed suites' tables anew first")
    given = parser.parse_args()
    for path in sorted((HERE / "results").glob("*/runs.csv")) if given.again else ():
        rewrite_results(path.parent)
    for folder in given.folders:
        target = HERE / "results" / folder.resolve().name
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
