"""The report as text, and in a real browser."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from semisup.bench.pages import charts
from semisup.bench.pages.leaderboard import leaderboard_markdown
from semisup.bench.pages.report import report_html
from semisup.columns import COLUMNS
from semisup.text import budget
from tests.bench.bench_rows import row, runs
from tests.bench.bench_rows import summary as rows_summary
from tests.bench.bench_summary import BUDGETS, NAMES, failed_cell, fake_summary

VOID = {"meta", "br", "link", "input", "hr", "img"}
NASTY = "<script>alert('x')</script> & \"q\" </title>"


class Page(HTMLParser):
    """Tags with their attributes, tables as rows of text, and all text outside script and style."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)
            if self.rows and {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k.rstrip("_")) == v for k, v in wanted.items())]


def words(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def series_of(page: Page, entry: str) -> int:
    return len(page.all("g", **{"data-entry": entry}))


def test_every_entry_budget_and_number_is_on_the_page() -> None:
    summary = fake_summary()
    page = Page(report_html(summary))
    rows = [row for row in page.rows if len(row) > 12]
    assert len(rows) == 1 + 12 * 5 + 1
    shown = {(row[0], row[1], row[3].rstrip(" *†")) for row in rows}
    for cell in summary["cells"]:
        accuracy = cell["accuracy"]
        text = f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f}"
        assert (cell["entry"], budget(cell["labels"], cell["n_labels"]), text) in shown
    for name in [*NAMES[:12], "fully supervised"]:
        assert series_of(page, name) == 2  # labels and time


def test_the_answer_names_the_best_of_each_budget_with_its_interval_and_margin() -> None:
    summary = fake_summary(NAMES[:3], BUDGETS[:2], fully=False)
    for cell in summary["cells"]:
        cell["accuracy"]["mean"] = 0.5
    best = next(cell for cell in summary["cells"] if (cell["entry"], cell["labels"]) == ("mean teacher", "20"))
    best["accuracy"] |= {"mean": 0.8125, "low": 0.79, "high": 0.84}
    best["difference"] |= {"mean": 0.1, "low": -0.02, "high": 0.22}
    text = words(Page(report_html(summary)))
    assert "Best mean accuracy: supervised with 10 labels; mean teacher with 20 labels." in text  # ties: suite's order
    assert "81.2% [79.0, 84.0] +10.0 [-2.0, 22.0] * points over supervised: not shown to be better" in text
    assert "the baseline itself" in text


def test_a_star_marks_what_is_not_shown_to_be_better_than_the_baseline() -> None:
    summary = fake_summary(NAMES[:4], BUDGETS[:1], fully=False)
    lows = {"fixmatch": 0.01, "mean teacher": 0.0, "noisy student": None}
    for cell in summary["cells"]:
        if cell["entry"] in lows:
            cell["difference"]["low"] = lows[cell["entry"]]
    rows = {row[0]: row[3] for row in Page(report_html(summary)).rows if len(row) > 12}
    assert {name for name, text in rows.items() if "*" in text} == {"mean teacher", "noisy student"}


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = report_html(fake_summary())
    page = Page(html)
    assert {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "image", "use"} == set()
    assert page.all("script") == [{}]
    for _, attributes in page.tags:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert re.sub(r"url\(#labels-\d+\)", "", html).count("url(") == 0
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none';")


def test_the_same_summary_gives_the_same_small_page_also_after_json() -> None:
    summary = fake_summary()
    html = report_html(summary)
    assert html == report_html(json.loads(json.dumps(summary)))
    assert len(html.encode()) < 600_000
    assert len(report_html(fake_summary(NAMES, computes=("400 steps", "20 s"))).encode()) < 1_500_000


def test_whatever_the_user_wrote_is_escaped() -> None:
    summary = fake_summary((NASTY, "b"), baseline=NASTY)
    summary |= {"suite": NASTY, "command": NASTY, "settings": NASTY, "notes": [NASTY], "classes": [NASTY] * 10}
    summary["failures"] = [{"run": NASTY, "error": NASTY}]
    summary["provenance"] = {NASTY: [NASTY, "line two"]}
    summary["cells"].append(failed_cell("b", NASTY, 7, NASTY))
    summary["computes"] = ["", NASTY]
    summary["budgets"].append({"labels": NASTY, "n_labels": 7})
    page = Page(report_html(summary))
    assert len(page.all("script")) == 1
    assert len(page.all("title")) > 1 and "alert('x')" in words(page)
    assert [row[0] for row in page.rows].count(NASTY) > 5
    plain = Page(report_html(fake_summary(("a", "b"), baseline="a")))
    assert {tag for tag, _ in page.tags} - {tag for tag, _ in plain.tags} <= {"select", "h3", "dl", "br"}


def test_tables_and_charts_are_described_for_a_screen_reader() -> None:
    page = Page(report_html(fake_summary()))
    headers = page.all("th")
    assert headers and all(a.get("scope") in ("col", "row") for a in headers)
    for attributes in page.all("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])
    assert all(a.get("type") == "button" for a in page.all("button"))
    (root,) = page.all("html")
    assert root["lang"] == "en"


def test_what_was_not_measured_is_left_out_or_a_dash() -> None:
    summary = fake_summary(NAMES[:3], fully=False)
    measures = (
        "raw_accuracy",
        "nll",
        "ece",
        "brier",
        "coverage",
        "kept_accuracy",
        "knn",
        "probe",
        "oracle_accuracy",
        "steps",
    )
    for cell in summary["cells"]:
        cell |= dict.fromkeys(measures) | {
            "seconds": None,
            "calibrated_seconds": None,
            "per_class": [],
            "reliability": [],
        }
    summary |= {"saved": {}, "labels_needed": [], "settings": "", "notes": [], "provenance": {}}
    summary["cells"][0]["nll"] = {"mean": 0.1234, "std": None, "n": 1}
    page = Page(report_html(summary))
    header = next(row for row in page.rows if len(row) > 8)
    assert "NLL" in header and not {"ECE", "seconds", "kNN", "oracle"} & set(header)
    column = header.index("NLL")
    values = [row[column] for row in page.rows if len(row) == len(header)][1:]
    assert sorted(values) == ["0.123", *["–"] * 14]
    text = words(page)
    assert "No times were measured." in text
    for title in (
        "Calibration",
        "Accuracy per class",
        "Labels needed",
        "What shared stages saved",
    ):
        assert title not in text


def test_a_class_without_test_images_has_a_dash() -> None:
    summary = fake_summary(NAMES[:2], BUDGETS[:2], fully=False)
    for cell, missing in zip(summary["cells"], (None, math.nan, None, None), strict=True):
        cell["per_class"][3] = missing
    rows = [row for row in Page(report_html(summary)).rows if len(row) == 11 and row[0] != "Entry"]
    assert [row[4] for row in rows] == ["–"] * 4


def test_without_a_baseline_nothing_is_paired_and_no_star_explained() -> None:
    summary = fake_summary(NAMES[:3], baseline=None)
    assert all(cell["difference"] is None for cell in summary["cells"])
    text = words(Page(report_html(summary)))
    assert "*" not in text and "None" not in text.replace("Failed and collapsed runs None.", "")
    assert "p (Holm)" not in text


def test_one_budget_is_no_curve_and_one_draw_no_interval() -> None:
    summary = fake_summary(NAMES[:3], BUDGETS[:1], draws=1, fully=False)
    page = Page(report_html(summary))
    text = words(page)
    assert "One budget only, so there is no curve" in text and "one draw, no interval" in text
    assert series_of(page, "fixmatch") == 1 and page.all("polygon") == []  # in the chart over time
    assert "95% interval" not in [cell for row in page.rows for cell in row]
    two = Page(report_html(fake_summary(NAMES[:3], BUDGETS[:2], draws=1, fully=False)))
    assert series_of(two, "fixmatch") == 2 and two.all("polygon") == []


def test_failures_only_is_a_page_that_says_so() -> None:
    summary = fake_summary(NAMES[:2], BUDGETS[:1])
    summary["cells"] = [failed_cell("fixmatch", "10", 10), {**failed_cell("supervised", "10", 10), "accuracy": None}]
    summary["failures"] = [{"run": "fixmatch, 10 labels, draw 0", "error": "loss is not finite"}]
    for cells in (summary["cells"], []):
        page = Page(report_html({**summary, "cells": cells}))
        text = words(page)
        assert "No run has a result yet; 1 failed" in text and "loss is not finite" in text
        anchors = {a["href"] for a in page.all("a")}
        assert anchors <= {f"#{a['id']}" for _, a in page.tags if a.get("id")}


def test_failed_and_collapsed_runs_are_counted() -> None:
    summary = fake_summary(NAMES[:3])
    summary["cells"][1]["collapsed"] = 2
    summary["cells"].append(failed_cell("fixmatch", "250", 250, runs=3))
    summary["budgets"].insert(5, {"labels": "250", "n_labels": 250})
    rows = Page(report_html(summary)).rows
    assert ["fixmatch", "10 labels", "5", "0", "2"] in rows
    assert ["fixmatch", "250 labels", "3", "3", "0"] in rows


def test_computes_have_charts_and_rows_of_their_own() -> None:
    page = Page(report_html(fake_summary(NAMES[:3], computes=("400 steps", "20 s"))))
    assert series_of(page, "fixmatch") == 4
    rows = [row for row in page.rows if len(row) > 12]
    assert rows[0][2] == "compute" and {row[2] for row in rows[1:]} == {"400 steps", "20 s"}
    assert [a["value"] for a in page.all("option")][-3:] == ["*", "400 steps", "20 s"]
    assert len({a["id"] for a in page.all("clippath")}) == 2


def test_labels_needed_says_at_most_a_number_or_how_many_draws() -> None:
    summary = fake_summary(NAMES[:3])
    rows = Page(report_html(summary)).rows
    assert ["entry", "for 80%", "for 90%", "for 95%"] in rows
    assert ["fixmatch", "≤ 10", "61 [41, 96]", "not reached"] in rows
    assert ["mean teacher", "22 [17, 33]", "2 of 5 draws", "not reached"] in rows


def markdown_rows(text: str) -> list[dict[str, str]]:
    """The lines of every table under a heading of one budget, by title; the budget and compute among them."""
    found, place = [], ("", "")
    titles: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            labels, _, compute = line.lstrip("# ").partition(" labels, ")
            place, titles = (labels, compute) if line.startswith("### ") else ("", ""), []
        elif line.startswith("|") and place[0]:
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if titles and not line.startswith("| -"):
                found.append(dict(zip(titles, cells, strict=True)) | {"labels": place[0], "compute": place[1]})
            titles = titles or cells
    return found


def test_leaderboard_and_report_agree_in_every_figure() -> None:
    """All cells of a summary of real rows: the same columns, and the same text in each."""
    rows = []
    for compute in ("400 steps", "20 s"):
        for labels, level in ((40, 0.5), (250, 0.7)):
            for place, entry in enumerate(("weak", "strong", "a", "b")):
                accuracies = [level + 0.02 * place + 0.01 * ((3 * draw + place) % 4) for draw in range(3)]
                measures = {column.name: 0.1 + 0.07 * i for i, column in enumerate(COLUMNS[1:], 1) if i < 11}
                measures |= {"seconds": 12.3 + place, "steps": 400.0, "calibrated_seconds": 3.21}
                rows += runs(entry, labels, accuracies, compute=compute, **measures)
            rows.append(row("b", labels=str(labels), n_labels=labels, draw=3, compute=compute, status="failed"))
    made = rows_summary(rows, baselines=["weak", "strong"])
    shown = Page(report_html(made))
    titles = next(line for line in shown.rows if len(line) > 12)
    page = [dict(zip(titles, line, strict=True)) for line in shown.rows if len(line) == len(titles)][1:]
    text = markdown_rows(leaderboard_markdown(made))
    assert len(page) == len(text) == 16
    by_place = {(line["entry"], line["labels"], line["compute"]): line for line in text}
    for line in page:
        other = by_place[line["entry"], line["labels"], line["compute"]]
        for title, words_ in line.items():
            assert other.get(title, "") == words_.strip().removesuffix("–"), (title, line["entry"])
        assert not {title for title, words_ in other.items() if words_} - set(line)


# Charts


def lines_of(cells: list[dict[str, Any]]) -> dict[str, charts.Series]:
    chart = charts.efficiency_chart(cells, "")
    assert chart is not None
    return {own.entry: own for own in chart.series}


def test_a_curve_rises_with_accuracy_and_is_log_in_labels() -> None:
    cells = fake_summary(NAMES[:1], (("10", 10), ("100", 100), ("1000", 1000)))["cells"]
    own = lines_of(cells)
    x, y = zip(*((mark.x, mark.y) for mark in own["supervised"].marks), strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1]) and x[0] < x[1]
    means = [cell["accuracy"]["mean"] for cell in cells[:3]]
    assert (y[0] - y[1]) / (y[1] - y[2]) == pytest.approx((means[1] - means[0]) / (means[2] - means[1]))
    assert own["fully supervised"].level is not None and own["fully supervised"].marks == []
    mark = own["supervised"].marks[0]
    assert mark.low is not None and mark.high is not None and mark.high < mark.y < mark.low  # SVG's y points down


def test_all_labels_next_to_other_budgets_is_a_point_of_the_curve() -> None:
    cells = fake_summary(NAMES[:2], (("10", 10), ("all", 1437)), fully=False)["cells"]
    assert [len(own.marks) for own in lines_of(cells).values()] == [2, 2]


def test_a_band_is_drawn_only_between_neighbors_with_an_interval() -> None:
    cells = fake_summary(NAMES[:1], fully=False)["cells"]
    cells[1]["accuracy"] |= {"low": None, "high": None}
    own = lines_of(cells)["supervised"]
    assert [len(band.split()) for band in own.bands] == [6]
    assert [mark.cell["labels"] for mark in own.whiskers] == ["10"]


def test_two_draws_do_not_flatten_the_chart() -> None:
    cells = fake_summary(NAMES[:1], fully=False, draws=2)["cells"]
    low, high = charts.accuracy_range(cells)
    draws = [value for cell in cells for value in cell["accuracy"]["values"].values()]
    assert min(draws) - low < 0.03 and high - max(draws) < 0.03


def test_time_is_the_calibrated_one_or_a_hollow_wall_clock() -> None:
    cells = fake_summary(NAMES[:2], BUDGETS[:1], fully=False)["cells"]
    cells[0]["calibrated_seconds"] = {"mean": 0.0, "std": None, "n": 1}  # log of it would be infinite
    cells[1] |= {"calibrated_seconds": None, "seconds": {"mean": 50.0, "std": None, "n": 1}}
    chart = charts.time_chart(cells, "")
    assert chart is not None
    marks = [own.marks[0] for own in chart.series]
    assert [(mark.seconds, mark.hollow) for mark in marks] == [(1e-3, False), (50.0, True)]
    assert charts.LEFT <= marks[0].x < marks[1].x <= charts.WIDTH
    cells[0] |= {"calibrated_seconds": None, "seconds": None}
    cells[1]["seconds"] = None
    assert charts.time_chart(cells, "") is None


def test_spread_moves_labels_apart_as_little_as_it_can() -> None:
    assert charts.spread([10, 50], 15, 0, 100) == [10, 50]
    assert charts.spread([52, 50], 10, 0, 100) == [56, 46]
    assert charts.spread([0, 0, 0], 10, 0, 100) == [0, 10, 20]
    assert charts.spread([99, 98, 100], 10, 0, 100) == [90, 80, 100]
    assert charts.spread([], 10, 0, 100) == []


def test_ticks_are_round_and_inside() -> None:
    assert charts.percent_ticks(0.47, 1.0) == (pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), 0)
    values, decimals = charts.percent_ticks(0.981, 0.994)
    assert values == pytest.approx([0.982, 0.984, 0.986, 0.988, 0.99, 0.992, 0.994]) and decimals == 1


def test_an_empty_bin_is_no_dot() -> None:
    dots = charts.reliability_chart([[0, 0, 0], [30, 0.5, 0.25], [10, 1.0, 1.0]], 100)
    assert [(x, y) for x, y, _, _ in dots] == [(50, 75), (100, 0)]
    assert dots[0][2] > dots[1][2]


# The browser


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    """The browser with the report of two computes and a failed cell open, from a file."""
    summary = fake_summary(NAMES[:4], BUDGETS[:3], computes=("400 steps", "20 s"))
    next(cell for cell in summary["cells"] if cell["entry"] == "fixmatch")["ece"] = None
    path = tmp_path / "report.html"
    path.write_text(report_html(summary), encoding="utf-8")
    browser.get_log("performance"), browser.get_log("browser")  # what earlier tests left
    browser.get(path.as_uri())
    return browser


def column(page: Any, title: str) -> list[str]:
    """Text of the leaderboard's shown rows under a header."""
    script = """
        const table = document.getElementById("cells");
        const index = [...table.tHead.rows[0].cells].findIndex((head) => head.innerText.trim() === arguments[0]);
        const rows = [...table.tBodies[0].rows].filter((row) => row.checkVisibility());
        return rows.map((row) => row.cells[index].innerText.trim());
    """
    return [str(text) for text in page.execute_script(script, title)]


def header(page: Any, title: str) -> Any:
    return page.find_element("xpath", f"//table[@id='cells']//thead//th[button[.='{title}']]")


def press(page: Any, title: str, key: str | None = None) -> str:
    """Press a header, by mouse or keyboard; return its aria-sort."""
    button = header(page, title).find_element("tag name", "button")
    button.send_keys(key) if key else page.execute_script("arguments[0].scrollIntoView()", button) or button.click()
    sorted_ = page.find_elements("css selector", "#cells th[aria-sort]")
    assert len(sorted_) == 1
    return str(sorted_[0].get_attribute("aria-sort"))


def test_chromium_shows_every_row_without_an_error_or_a_request(page: Any) -> None:
    assert len(column(page, "entry")) == 2 * (4 * 3 + 1)
    page.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # The browser's own first page may still ask for its parts, data: pictures among them.
    requests = [one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome")]
    assert requests == [page.current_url] and requests[0].startswith("file:///")


def test_a_press_on_a_header_sorts_and_another_reverses(page: Any) -> None:
    assert press(page, "accuracy") == "descending"
    values = [float(text.split()[0]) for text in column(page, "accuracy")]
    assert values == sorted(values, reverse=True) and len(set(values)) > 10
    assert press(page, "accuracy", "\n") == "ascending"  # by keyboard
    values = [float(text.split()[0]) for text in column(page, "accuracy")]
    assert values == sorted(values)
    assert press(page, "entry") == "ascending"
    names = column(page, "entry")
    assert names == sorted(names)
    assert press(page, "labels") == "ascending"
    labels = [int(text.split()[-1].strip("()").replace(",", "")) for text in column(page, "labels")]
    assert labels == sorted(labels) and 1437 in labels  # as numbers: not 10, 1437, 20
    assert page.get_log("browser") == []


def test_missing_values_sort_last_either_way(page: Any) -> None:
    for order in ("ascending", "descending"):
        assert press(page, "ECE") == order
        texts = column(page, "ECE")
        assert texts.count("–") == 1 and texts[-1] == "–"
        values = [float(text.split()[0]) for text in texts[:-1]]
        assert values == sorted(values, reverse=order == "descending")


def test_filters_hide_the_other_rows_and_count(page: Any) -> None:
    from selenium.webdriver.support.ui import Select

    labels = Select(page.find_element("css selector", "select[data-filter=labels]"))
    compute = Select(page.find_element("css selector", "select[data-filter=compute]"))
    labels.select_by_visible_text("4/class (40) labels")
    assert set(column(page, "labels")) == {"4/class (40)"} and len(column(page, "labels")) == 8
    compute.select_by_visible_text("20 s")
    assert set(column(page, "compute")) == {"20 s"} and len(column(page, "entry")) == 4
    assert page.find_element("css selector", ".filters output").text == "4 of 26 rows"
    press(page, "accuracy")
    assert len(column(page, "entry")) == 4
    labels.select_by_index(0)
    compute.select_by_index(0)
    assert len(column(page, "entry")) == 26


def test_a_pressed_name_stands_out_in_every_chart(page: Any) -> None:
    button = page.find_element("css selector", "[data-highlight=fixmatch]")
    button.send_keys(" ")
    chosen = page.find_elements("css selector", ".series.chosen")
    assert [own.get_attribute("data-entry") for own in chosen] == ["fixmatch"] * 4
    pressed = page.find_elements("css selector", "[aria-pressed=true]")
    assert len(pressed) == 4
    button.send_keys(" ")
    assert page.find_elements("css selector", ".highlighting, .chosen, [aria-pressed=true]") == []


def test_the_page_is_as_wide_as_a_telephone(page: Any) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 400
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
