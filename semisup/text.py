"""How numbers, percentages, durations and budgets are written, and how foreign text is made harmless, everywhere."""

from __future__ import annotations

import math
import shlex
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "aligned",
    "budget",
    "command",
    "count",
    "csv_text",
    "duration",
    "from_csv_text",
    "harmless",
    "interval",
    "markdown_table",
    "markdown_text",
    "mean_std",
    "number",
    "p_value",
    "percent",
    "printable",
    "signed",
]

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""First characters that make a spreadsheet take a cell for a formula, and the quote that keeps it from doing so."""
MARKUP = {"\\": "\\\\", "|": "\\|", "`": "\\`", "*": "\\*", "[": "\\[", "]": "\\]"}
MARKUP |= {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
"""What Markdown or HTML takes for its own, and how it is written as itself."""
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Kinds of signs that turn the direction of the letters after them, so that `gpj.exe` may be read as `exe.jpg`."""


def printable(text: str) -> str:
    """Return text of one line, such as a path, without what a terminal cannot show or would obey.

    These are bytes that are no UTF-8, control characters, ends of lines and signs that turn the direction of letters.
    """
    return _spelled(text.encode("utf-8", "backslashreplace").decode(), "")


def harmless(text: str) -> str:
    """Return text of several lines without what a terminal would obey; bytes that are no UTF-8 stay as they are."""
    return _spelled(text, "\n\t")


def _spelled(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(repr(letter)[1:-1] if _is_obeyed(letter) and letter not in kept else letter for letter in text)


def _is_obeyed(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(letter) in TURNS


def number(value: float | None, digits: int) -> str:
    """Write a number with thousands separators and never as `-0.0`; `""` for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def count(value: float | None) -> str:
    """Write a number of labels, steps or images in full from 100 on, with three digits below; `""` for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction in percent, without the sign; `""` for None and NaN."""
    return "" if value is None else number(100 * value, digits)


def signed(value: float | None) -> str:
    """Write a difference of fractions in percentage points; zero has no sign."""
    text = percent(value)
    return f"+{text}" if value is not None and value > 0 and text != "0.0" else text


def interval(low: float | None, high: float | None) -> str:
    """Write two fractions in percent, `[60.1, 65.3]`; `""` where there are none."""
    return "" if low is None or high is None else f"[{percent(low)}, {percent(high)}]"


def p_value(value: float | None) -> str:
    """Write a p value with three decimals; `""` for None."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Write a time with the one or two units that matter: `0.4 s`, `12 s`, `35 min`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    words = [f"{days:,} d" if days else "", f"{hours} h" if hours else "", f"{rest} min" if rest and not days else ""]
    return " ".join(word for word in words if word)


def budget(labels: str, n_labels: int) -> str:
    """Write a budget as the suite has it, with its number of labels where that says more: `40`, `all (60,000)`."""
    return labels if labels == str(n_labels) else f"{labels} ({n_labels:,})"


def command(*words: str | Path) -> str:
    """Return a command as a shell reads it, word by word; a path that begins with a dash is not taken for an option."""
    return shlex.join([f"./{word}" if isinstance(word, Path) and str(word)[0] == "-" else str(word) for word in words])


def csv_text(text: str) -> str:
    """Return the text of a CSV cell so that no spreadsheet takes it for a formula: such text gets a quote in front.

    Plain numbers are not text and need none of this; `from_csv_text` takes the quote away again.
    """
    return f"'{text}" if text.startswith(FORMULA) else text


def from_csv_text(cell: str) -> str:
    """Return what `csv_text` was given."""
    return cell.removeprefix("'")


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is, on one line: no HTML, link, image, emphasis or table column of its own.

    Underscores stay: inside words they mean nothing, and names are full of them. What a terminal would obey is spelled
    out, as pages are shown there too.
    """
    return "".join(MARKUP.get(letter, letter) for letter in harmless(" ".join(text.split())))


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> list[list[str]]:
    """Return header and lines, every cell padded to its column's width: the first `left` columns left, others right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (header, *lines)
    ]


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table, its first `left` columns left; other columns that are empty in all lines are left out.

    Args:
        header: titles, as `markdown_text` has them.
        lines: cells likewise.
        left: number of columns that are text.
    """
    kept = [i for i in range(len(header)) if i < left or any(line[i].strip() for line in lines)]
    first, *rest = aligned([header[i] for i in kept], [[line[i] for i in kept] for line in lines], left)
    rule = ["-" * len(cell) if i < left else "-" * (len(cell) - 1) + ":" for i, cell in enumerate(first)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, rule, *rest))


def mean_std(found: Mapping[str, Any] | None, write: Callable[[float], str]) -> str:
    """Write a mean and, where there is one, its standard deviation: `61.8 ± 6.5`; `""` without a mean.

    Args:
        found: `mean` and `std`, either of them None where there is none; or None.
        write: number -> text.
    """
    if found is None or found["mean"] is None:
        return ""
    return write(found["mean"]) + ("" if found["std"] is None else f" ± {write(found['std'])}")
