"""Numbers and tables as text for people: percent with one decimal, columns aligned in the source too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["aligned", "duration", "interval", "markdown_table", "mean_std", "number", "one_line", "percent", "signed"]


def number(value: float | None, digits: int) -> str:
    """With thousands separators and never "-0.0"; "" for None."""
    if value is None:
        return ""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def percent(value: float | None) -> str:
    """A fraction in percent, without the sign; "" for None."""
    return "" if value is None else number(100 * value, 1)


def signed(value: float | None) -> str:
    """A difference of fractions in percentage points; zero has no sign."""
    text = percent(value)
    return f"+{text}" if value is not None and value > 0 and text != "0.0" else text


def mean_std(found: Mapping[str, Any] | None, scale: float = 100, digits: int = 1) -> str:
    """``61.8 ± 6.5``, without the deviation where there is none; "" for None or no mean."""
    if found is None or found["mean"] is None:
        return ""
    deviation = "" if found["std"] is None else f" ± {number(scale * found['std'], digits)}"
    return number(scale * found["mean"], digits) + deviation


def interval(low: float | None, high: float | None) -> str:
    """Two fractions in percent, ``[60.1, 65.3]``; "" where there are none."""
    return "" if low is None or high is None else f"[{percent(low)}, {percent(high)}]"


def one_line(text: str) -> str:
    """Text that cannot break a table's line or column."""
    return " ".join(text.split()).replace("|", "\\|")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> list[list[str]]:
    """Header and lines, every cell padded to its column's width: the first `left` columns left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (header, *lines)
    ]


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, its first `left` columns left; other columns that are empty in every line are left out."""
    kept = [i for i in range(len(header)) if i < left or any(line[i].strip() for line in lines)]
    first, *rest = aligned([header[i] for i in kept], [[line[i] for i in kept] for line in lines], left)
    rule = ["-" * len(cell) if i < left else "-" * (len(cell) - 1) + ":" for i, cell in enumerate(first)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, rule, *rest))
