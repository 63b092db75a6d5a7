"""The page of a run: every fact of it, escaped, and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import semisup
from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.evaluate.metrics import wilson
from semisup.pipeline import RunResult
from semisup.pipeline.page import report, write_page
from semisup.pipeline.page.curves import HEIGHT, WIDTH, curve, reliability_dots
from semisup.pipeline.page.write import _confused
from tests.pipeline.pipeline_small import SMALL, run_small, small

NASTY = '<script>alert(1)</script> & "q"'


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "out"
    run_small(folder)
    return folder


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run on two classes with dangerous names, without test images."""
    data = load_data(small().data)
    rows = np.flatnonzero(data.y_train < 2)[:80]
    labels = data.y_train[rows].copy()
    labels[20:] = -1
    given = {"x_train": data.x_train[rows], "y_train": labels, "classes": np.array([NASTY, "b"])}
    recipe = {
        **SMALL,
        "data": {"labels": "all"},
        "stages": {"train": {"method": {"name": "fixmatch"}, "batch": {"labeled": 8, "unlabeled": 8}, "steps": 6}},
    }
    return semisup.run(recipe, data=given, out=tmp_path_factory.mktemp("nasty") / 'o<b>"ut', quiet=True)


def text_of(page: Path) -> str:
    html = page.read_text(encoding="utf-8").split("</style>")[1].replace("<wbr>", "")
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_every_run_writes_it(out: Path) -> None:
    text, content = text_of(out / "report.html"), json.loads((out / "result.json").read_text())
    final = content["stages"][-1]["metrics"]
    assert f"{100 * final['test/accuracy']:.1f}% of 359 test images" in text
    assert f"Expected calibration error {100 * final['test/ece']:.1f}%" in text
    for stage in content["stages"]:
        assert stage["name"] in text and stage["fingerprint"] in text
    for words in ("40 labels, 1,438 training images", "pseudo_labels/coverage", "Most doubtful images", "simclr_v2"):
        assert words in text
    assert "arXiv:2006.10029" in text, "what to cite"
    assert "semisup predict" in text and "load_predictor" in text


def test_confusion_and_pictures_are_those_of_the_last_classifier(out: Path) -> None:
    html, data = (out / "report.html").read_text(encoding="utf-8"), load_data(small().data)
    matrix = json.loads((out / "result.json").read_text())["stages"][-1]["metrics"]["test/confusion"]
    body = re.search(r'<table class="confusion">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    assert body is not None
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row)[:-1] for row in body[1].split("</tr>")[:-1]]
    assert [[int(cell or 0) for cell in row] for row in rows] == matrix
    predicted = semisup.load_predictor(out / "student").predict_proba(data.x_test)
    wrong = (predicted.argmax(1) != data.y_test).sum()
    shown = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="(\d), (\d+)%">', html)
    assert len(shown) == min(wrong, 24) + 24
    assert int(shown[-24][1]) == round(100 * predicted.max(1).min())


def test_names_and_paths_are_escaped(nasty: RunResult) -> None:
    assert nasty.out is not None
    html = (nasty.out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and 'o<b>"ut' not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "60 unlabeled images: a label helps most" in " ".join(html.split())
    assert "There are no test images" in html


def test_without_the_data_it_says_why_there_are_no_pictures(nasty: RunResult, tmp_path: Path) -> None:
    assert nasty.out is not None
    folder = tmp_path / "copy"
    shutil.copytree(nasty.out, folder)
    page, missing = report(folder)
    assert missing is None and "data:image/png" in page.read_text(encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(re.sub(r"path: .*?npz", "path: /nosuch.npz", recipe.read_text(), flags=re.DOTALL))
    page, missing = report(folder)
    assert missing is not None and "/nosuch.npz" in missing
    assert "adds them" in page.read_text(encoding="utf-8")
    with pytest.raises(SemisupError, match=r"no result\.json"):
        report(tmp_path)


def test_looking_at_images_has_a_limit(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    data = load_data(small().data)
    from semisup.pipeline.plan import recipe_budget

    page = write_page(folder, data, recipe_budget(small(), data), seconds=0.0)
    assert "Most doubtful" not in page.read_text(encoding="utf-8")


def test_lines_stay_in_their_box() -> None:
    values = [(step, float(np.sin(step))) for step in range(1, 2000)]
    line = curve("x", values)
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.points.split()]
    assert 200 < len(points) <= 260
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert points[-1][0] == WIDTH and line.last == values[-1][1]
    assert curve("x", [(1, 2.0), (2, float("nan"))]) is None
    flat = curve("x", [(1, 2.0), (2, 2.0)])
    assert flat is not None and "nan" not in flat.points
    shares = curve("x", [(1, 0.25), (2, 0.5)], (0.0, 1.0))
    assert shares is not None and shares.points.split()[-1] == f"{WIDTH:.1f},{HEIGHT / 2:.1f}"


def test_numbers_of_the_page() -> None:
    assert wilson(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)  # scipy's binomtest(90, 100), method wilson
    assert wilson(1.0, 10)[1] <= 1 and wilson(0.0, 10)[0] >= 0
    assert _confused(np.array([[5.0, 2, 0], [0, 3, 0], [7, 0, 0]]), ["a", "b", "c"]) == [("c", "a", 7), ("a", "b", 2)]
    dots = reliability_dots([[0, 0.1, 0.5], [3, 0.5, 0.25], [9, 1.0, 1.0]], 100)
    assert [(dot["x"], dot["y"]) for dot in dots] == [(50, 75), (100, 0)] and dots[0]["r"] < dots[1]["r"]


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        ([], [], "valid dictionary"),
        (["stages"], "x", "stages: Input should be a valid list"),
        (["data", "n_test"], 0, "data.n_test is 0"),
        (["data", "notes"], 3, "data.notes"),
        (["stages", -1, "name"], "../out/student", "the recipe has no stage '../out/student'"),
        (["stages", -1, "seconds"], float("nan"), "seconds"),
        (["stages", -1, "metrics", "x"], 10**400, "metrics.x"),
        (["stages", -1, "metrics", "test/accuracy"], 7.0, "test/accuracy"),
        (["stages", -1, "metrics", "test/confusion"], [[1], [1, 2]], "as many columns as rows"),
        (["stages", -1, "metrics", "test/reliability"], [[1, 2]], "test/reliability"),
        (["recipe"], "\ud800", "recipe: Value error, must be text"),
    ],
)
def test_a_damaged_result_is_refused(out: Path, tmp_path: Path, keys: list[Any], value: Any, said: str) -> None:
    folder = tmp_path
    shutil.copy(out / "recipe.yaml", folder)
    found = place = {"whole": json.loads((out / "result.json").read_text())}
    for key in (keys := ["whole", *keys])[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / "result.json").write_text(json.dumps(found["whole"]))
    with pytest.raises(SemisupError, match=re.escape(said)) as told:
        write_page(folder, None, None)
    assert "result.json: damaged" in str(told.value)


def test_a_received_folder_shows_nothing_of_elsewhere(out: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(out, tmp_path / "received")
    (tmp_path / "secret").write_text("secret")
    (folder / "student" / "a.png").symlink_to(tmp_path / "secret")
    (folder / "student" / "b.png").symlink_to(tmp_path / "nowhere")
    (folder / "student" / "c.png").mkdir()
    assert "c2VjcmV0" not in write_page(folder, None, None).read_text(encoding="utf-8")
    (folder / "events.jsonl").unlink()
    (folder / "events.jsonl").mkdir()
    with pytest.raises(SemisupError, match=r"events\.jsonl: cannot be read"):
        write_page(folder, None, None)
    (folder / "student" / "model.json").write_text("[]")
    with pytest.raises(SemisupError, match="not a model's description"):
        write_page(folder, None, None)


@pytest.mark.parametrize("width", [1400, 400])
def test_chromium_shows_it_without_an_error_or_a_request(browser: Any, out: Path, nasty: RunResult, width: int) -> None:
    assert nasty.out is not None
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    for folder in (out, nasty.out):
        browser.get_log("performance"), browser.get_log("browser")
        browser.get((folder / "report.html").absolute().as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert browser.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert [url for url in sent if not url.startswith(("data:", "chrome:"))] == [browser.current_url]
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        broken = "return [...document.images].filter((image) => image.naturalWidth === 0).length"
        assert browser.execute_script(broken) == 0
