"""A suite's summary as one web page that needs nothing else: no network, no fonts or scripts from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semisup.bench.pages import charts

__all__ = ["report_html"]

COLORS = 7  # --c0 ... --c6 in the template
MARKERS = (
    "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z",  # circle
    "M-4,-4H4V4H-4z",  # square
    "M0,-5.6L5.6,0L0,5.6L-5.6,0z",  # diamond
    "M0,-5.2L5,4H-5z",  # triangle
    "M0,5.2L5,-4H-5z",  # triangle, down
)  # with seven colors, 35 entries before a pair comes again
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
MISSING = "–"
STRIP = 120.0  # width of the interval drawn in the leaderboard


@dataclass(frozen=True)
class Style:
    """How an entry looks in every chart; the baseline is the one in the color of the text."""

    color: str
    marker: str
    dash: str


@dataclass(frozen=True)
class Column:
    """A column of a table. ``read`` gives (value to sort by, text) of a row's item; None is a missing value."""

    title: str
    help: str
    read: Callable[[Mapping[str, Any]], tuple[float | str | None, str]]
    first: str = "ascending"  # order after the first click
    number: bool = True


@dataclass(frozen=True)
class Table:
    """Columns, and rows of (value to sort by, text) under them."""

    columns: list[Column]
    rows: list[list[tuple[float | str | None, str]]]


def report_html(summary: Mapping[str, Any]) -> str:
    """Return the page of a suite's summary (the content of leaderboard.json), the same text for the same summary.

    Everything a suite's author wrote is escaped. What was not measured is left out or shown as a dash.
    """
    files = FileSystemLoader(Path(__file__).parent)
    page = Environment(
        loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    order = {entry["entry"]: place for place, entry in enumerate(summary["entries"])}
    cells = sorted(
        (cell for cell in summary["cells"] if has_result(cell)),
        key=lambda cell: (summary["computes"].index(cell["compute"]), cell["n_labels"], order[cell["entry"]]),
    )
    by_compute = {
        compute: sorted((cell for cell in cells if cell["compute"] == compute), key=lambda cell: order[cell["entry"]])
        for compute in summary["computes"]
    }
    by_compute = {compute: own for compute, own in by_compute.items() if own}
    named = summary["computes"] != [""]
    ranked = [cell for own in by_compute.values() for group in ranking(own) for cell in group]
    shown = charts.accuracy_range(cells) if cells else (0.0, 1.0)
    return page.render(
        summary=summary,
        styles=styles(summary),
        named_computes=named,
        answers=[(compute, answer_line(own, named), ranking(own)) for compute, own in by_compute.items()],
        curves=[(compute, charts.efficiency_chart(own, compute)) for compute, own in by_compute.items()],
        times=[chart for compute, own in by_compute.items() if (chart := charts.time_chart(own, compute))],
        ranked=ranked,
        leaderboard=table(leaderboard_columns(summary), ranked),
        strips=[charts.interval_strip(cell["accuracy"], shown, STRIP) for cell in ranked],
        strip_width=STRIP,
        strip_range=shown,
        stars=[not_better(cell, summary["baseline"]) for cell in ranked],
        labels_needed=labels_needed(summary),
        pseudo=table(pseudo_columns(summary), [cell for cell in cells if cell["coverage"] or cell["kept_accuracy"]]),
        calibration=groups(cells, "reliability"),
        per_class=groups([cell for cell in cells if any(known(v) for v in cell["per_class"])], "per_class"),
        heat_low=min((v for cell in cells for v in cell["per_class"] if known(v)), default=0.0),
        reliability_chart=charts.reliability_chart,
        troubled=[cell for cell in summary["cells"] if cell["failed"] or cell["collapsed"]],
        saved=saved_text(summary["saved"]),
        not_better=not_better,
        percent=percent,
        signed=signed,
        spoken=spoken,
        budget_text=budget_text,
        compute_text=compute_text,
        duration=duration,
        missing=MISSING,
    )


def has_result(cell: Mapping[str, Any]) -> bool:
    """Whether any run of the cell finished."""
    return cell["accuracy"] is not None and cell["accuracy"]["mean"] is not None


def known(value: float | None) -> bool:
    """Whether a number was measured; not-a-number is what a class without test images gives."""
    return value is not None and value == value


def styles(summary: Mapping[str, Any]) -> dict[str, Style]:
    """Return each entry's look, by its place in the suite."""
    looks = {}
    others = [entry["entry"] for entry in summary["entries"] if entry["entry"] != summary["baseline"]]
    for place, name in enumerate(others):
        looks[name] = Style(
            f"var(--c{place % COLORS})", MARKERS[place % len(MARKERS)], DASHES[place // COLORS % len(DASHES)]
        )
    if summary["baseline"] is not None:
        looks[summary["baseline"]] = Style("var(--text)", MARKERS[0], "none")
    return looks


def percent(value: float | None, decimals: int = 1) -> str:
    """Write a fraction as a percentage without its sign."""
    return MISSING if value is None or not known(value) else f"{100 * value:.{decimals}f}"


def signed(value: float) -> str:
    """Write a difference of fractions in percentage points, with a true minus."""
    return f"{100 * value:+.1f}".replace("-", "−")


def budget_text(labels: str, n_labels: int) -> str:
    """Write a budget for people: what the suite says and how many labels that is."""
    return f"{labels} labels" if labels == str(n_labels) else f"{labels} ({n_labels:,} labels)"


def compute_text(compute: str) -> str:
    """Write what a run was given to compute."""
    return compute or "as the recipe says"


def duration(seconds: float) -> str:
    """Write a time with the two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    words = [f"{days} d" if days else "", f"{hours} h" if hours else "", f"{rest} min" if rest and not days else ""]
    return " ".join(word for word in words if word)


def number(value: float) -> str:
    """Write a number of labels, steps or seconds, three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spoken(cell: Mapping[str, Any]) -> str:
    """Return a cell as one line: the tooltip of its mark."""
    accuracy = cell["accuracy"]
    interval = "" if accuracy["low"] is None else f" ({percent(accuracy['low'])} to {percent(accuracy['high'])})"
    draws = "1 draw" if accuracy["n"] == 1 else f"{accuracy['n']} draws"
    budget = budget_text(cell["labels"], cell["n_labels"])
    return f"{cell['entry']}, {budget}: {percent(accuracy['mean'])}%{interval}, {draws}"


def not_better(cell: Mapping[str, Any], baseline: str | None) -> bool:
    """Whether a cell that was paired with the baseline has a difference whose interval does not lie above 0."""
    difference = cell["difference"]
    if cell["entry"] == baseline or difference is None:
        return False
    return difference["low"] is None or bool(difference["low"] <= 0)


# The answer on top


def ranking(cells: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return one compute's cells by budget, fewest labels first, best mean first; of equals, the suite's order."""
    budgets: dict[str, list[Mapping[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["n_labels"], -cell["accuracy"]["mean"])):
        budgets.setdefault(cell["labels"], []).append(cell)
    return list(budgets.values())


def answer_line(cells: Sequence[Mapping[str, Any]], named: bool) -> list[tuple[str, bool]]:
    """Return the page's first sentence on one compute, in pieces (text, whether it is an entry's name)."""
    wins: dict[str, list[str]] = {}
    for group in ranking(cells):
        best = group[0]
        note = "" if best["labels"] == str(best["n_labels"]) else f" ({best['labels']})"
        wins.setdefault(best["entry"], []).append(f"{best['n_labels']:,}{note}")
    pieces = [
        (f"Best mean accuracy, {compute_text(cells[0]['compute'])}: " if named else "Best mean accuracy: ", False)
    ]
    for place, (entry, budgets) in enumerate(wins.items()):
        listed = " and ".join(filter(None, [", ".join(budgets[:-1]), budgets[-1]]))
        pieces += [(entry, True), (f" with {listed} labels{'.' if place == len(wins) - 1 else '; '}", False)]
    return pieces


def saved_text(saved: Mapping[str, Any] | None) -> str:
    """Write what the stage cache saved: ``stages`` were trained where runs on their own need ``stages_needed``."""
    if not saved:
        return ""
    stages, needed = saved["stages"], saved["stages_needed"]
    return (
        f"{stages:,} stages were trained for runs that would train {needed:,} if each trained its own: "
        f"{duration(saved['seconds'])} of training instead of {duration(saved['seconds_needed'])}."
    )


# Tables


def table(columns: Sequence[Column], items: Sequence[Mapping[str, Any]]) -> Table:
    """Read the items, and leave out every column without a value."""
    rows = [[column.read(item) for column in columns] for item in items]
    kept = [i for i in range(len(columns)) if any(row[i][0] is not None for row in rows)]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def measured(key: str, write: Callable[[float], str]) -> Callable[[Mapping[str, Any]], tuple[float | None, str]]:
    """Return a reader of one of a cell's {mean, std, n} values: mean ± std."""

    def read(cell: Mapping[str, Any]) -> tuple[float | None, str]:
        value = cell[key]
        if value is None or value["mean"] is None:
            return None, MISSING
        text = write(value["mean"])
        return value["mean"], text if value["std"] is None else f"{text} ± {write(value['std'])}"

    return read


def where(summary: Mapping[str, Any]) -> list[Column]:
    """Columns that say which cell a row is about; the compute only in a suite that names one."""
    computes = [
        Column("Compute", "what each run was given", lambda cell: (compute_text(cell["compute"]),) * 2, number=False)
    ]
    return [
        Column("Entry", "row of the suite", lambda cell: (cell["entry"],) * 2, number=False),
        Column("Labels", "training and validation labels", lambda cell: (cell["n_labels"], labels_cell(cell))),
        *(computes if summary["computes"] != [""] else []),
    ]


def labels_cell(cell: Mapping[str, Any]) -> str:
    """Return a budget for a narrow column."""
    count = f"{cell['n_labels']:,}"
    return count if cell["labels"] == str(cell["n_labels"]) else f"{cell['labels']} = {count}"


def leaderboard_columns(summary: Mapping[str, Any]) -> list[Column]:
    """Everything that was measured of a cell, but for what has a table of its own."""
    methods = {entry["entry"]: entry for entry in summary["entries"]}
    points = "percent of the test set"

    def interval(cell: Mapping[str, Any]) -> tuple[float | None, str]:
        accuracy = cell["accuracy"]
        if accuracy["low"] is None:
            return None, MISSING
        return accuracy["low"], f"{percent(accuracy['low'])} to {percent(accuracy['high'])}"

    def difference(cell: Mapping[str, Any]) -> tuple[float | None, str]:
        value = cell["difference"]
        if value is None or value["mean"] is None:
            return None, MISSING
        text = signed(value["mean"])
        return value["mean"], text if value[
            "low"
        ] is None else f"{text} ({signed(value['low'])} to {signed(value['high'])})"

    def p_value(cell: Mapping[str, Any]) -> tuple[float | None, str]:
        value = None if cell["difference"] is None else cell["difference"]["p_holm"]
        return value, MISSING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"

    def count(key: str) -> Callable[[Mapping[str, Any]], tuple[float | None, str]]:
        return lambda cell: (cell[key], str(cell[key]))

    def parameters(cell: Mapping[str, Any]) -> tuple[float | None, str]:
        value = methods[cell["entry"]]["parameters"]
        return (value, f"{value:,}") if value else (None, MISSING)

    def rank(cell: Mapping[str, Any]) -> tuple[float | None, str]:
        return cell["rank"], MISSING if cell["rank"] is None else f"{cell['rank']:.1f}"

    def plain(value: float) -> str:
        return f"{value:.3f}"

    high = "descending"
    return [
        *where(summary),
        Column("Accuracy", f"{points}, mean ± standard deviation over draws", measured("accuracy", percent), high),
        Column("95% interval", f"{points}, t interval over draws", interval, high),
        Column(f"Over {summary['baseline']}", "percentage points, paired by draw, with 95% interval", difference, high),
        Column("p (Holm)", "two-sided paired t test, corrected for all comparisons of the suite", p_value),
        Column("Rank", "mean over draws among the entries with this budget; 1 is best", rank),
        Column("Draws", "label draws with a result", count("draws"), high),
        Column("Failed", "runs without a result", count("failed"), high),
        Column("Collapsed", "runs below twice chance; they stay in every mean", count("collapsed"), high),
        Column("ECE", "expected calibration error, percent", measured("ece", percent)),
        Column("NLL", "negative log-likelihood, nats", measured("nll", plain)),
        Column("Brier", "Brier score, 0 to 2", measured("brier", plain)),
        Column("Without EMA", f"{points}, raw weights", measured("raw_accuracy", percent), high),
        Column("kNN", f"{points}, nearest neighbors on features", measured("knn", percent), high),
        Column("Probe", f"{points}, linear probe on features", measured("probe", percent), high),
        Column(
            "Oracle",
            f"{points}, best over training, chosen on the test set: no result",
            measured("oracle", percent),
            high,
        ),
        Column("Steps", "optimizer steps of all stages", measured("steps", number)),
        Column("Seconds", "wall clock of all stages, shared ones included", measured("seconds", number)),
        Column("Seconds alone", "steps × step time measured alone", measured("calibrated_seconds", number)),
        Column("Parameters", "of the judged network", parameters),
        Column("Method", "of the judged stage", lambda cell: (methods[cell["entry"]]["method"],) * 2, number=False),
    ]


def pseudo_columns(summary: Mapping[str, Any]) -> list[Column]:
    """How good the labels are that an entry's predictor would give to unlabeled images."""
    high = "descending"
    return [
        *where(summary),
        Column("Kept", "percent of the unlabeled images above the threshold", measured("coverage", percent), high),
        Column("Accuracy of the kept", "percent of the kept images", measured("kept_accuracy", percent), high),
        Column("Test accuracy", "percent of the test set", measured("accuracy", percent), high),
    ]


def labels_needed(summary: Mapping[str, Any]) -> Table:
    """One row per entry and compute, one column per target accuracy."""
    found: dict[tuple[str, str], dict[float, Mapping[str, Any]]] = {}
    for item in summary["labels_needed"]:
        found.setdefault((item["entry"], item["compute"]), {})[item["target"]] = item
    smallest: dict[tuple[str, str], int] = {}
    for cell in summary["cells"]:
        key = (cell["entry"], cell["compute"])
        smallest[key] = min(smallest.get(key, cell["n_labels"]), cell["n_labels"])
    rows = [
        {"entry": key[0], "compute": key[1], "targets": targets, "smallest": smallest.get(key, 0)}
        for key, targets in found.items()
    ]
    columns = [column for column in where(summary) if column.title != "Labels"]

    def target_column(target: float) -> Column:
        def read(row: Mapping[str, Any]) -> tuple[float | None, str]:
            item = row["targets"].get(target)
            return (None, MISSING) if item is None else needed(item, row["smallest"])

        return Column(f"{100 * target:g}%", f"labels for {100 * target:g}% test accuracy", read)

    targets = sorted({item["target"] for item in summary["labels_needed"]})
    made = [*columns, *(target_column(target) for target in targets)]  # all targets, reached or not
    return Table(made, [[column.read(row) for column in made] for row in rows])


def needed(item: Mapping[str, Any], smallest: int) -> tuple[float | None, str]:
    """Write how many labels a target took; not more than the smallest budget is all that can be said of that one."""
    if item["labels"] is None:
        return None, f"{item['reached']} of {item['draws']} draws" if item["reached"] else "not reached"
    if item["labels"] <= smallest * (1 + 1e-9):
        return item["labels"], f"≤ {number(item['labels'])}"
    text = number(round(item["labels"]))
    return item["labels"], text if item["low"] is None else f"{text} ({number(item['low'])} to {number(item['high'])})"


def groups(cells: Sequence[Mapping[str, Any]], key: str) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Return (first cell, cells) of every compute and budget with a non-empty ``key``, in order."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell[key]:
            found.setdefault((cell["compute"], cell["labels"]), []).append(cell)
    return [(own[0], own) for own in found.values()]
