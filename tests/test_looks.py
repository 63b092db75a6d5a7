"""What people look at: the site of the docs and the two reports, in a real browser, and every link of the site.

Needs mkdocs-material and axe-playwright-python, whose axe-core measures contrast (`make looks` installs both).
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from semisup.bench.results.write import rewrite_results
from tests.pipeline.pipeline_small import run_small

ROOT = Path(__file__).parent.parent
LOOKED_AT = {
    "first": "/site/index.html",
    "tutorial": "/site/tutorial/index.html",
    "method": "/site/method-reference/index.html",
    "run": "/run/report.html",
    "bench": "/bench/report.html",
}
CONTRAST = """
const done = arguments[arguments.length - 1];
axe.run(document, {runOnly: ["color-contrast"]}).then(
  (found) => done(found.violations.flatMap((v) => v.nodes.map((n) => n.html.slice(0, 120) + " " + n.any[0].message))),
  (error) => done([String(error)]));
"""
WIDE = """
const wide = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1);
return [document.documentElement.scrollWidth, innerWidth, wide.slice(0, 5).map((e) => e.outerHTML.slice(0, 100))];
"""
FULL = "document.querySelectorAll('.confusion td').forEach((cell) => cell.style.setProperty('--v', 100));"
"""Every cell of a confusion matrix in its strongest color."""
pytestmark = pytest.mark.slow


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the site, the report of a run and that of a benchmark."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("pages")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run_small(folder / "run")
    (folder / "bench").mkdir()
    for name in ("runs.csv", "suite.json"):
        shutil.copy(ROOT / "benchmarks" / "results" / "digits-quickstart-draws" / name, folder / "bench")
    rewrite_results(folder / "bench")
    return folder


@pytest.fixture(scope="module")
def address(pages: Path) -> Iterator[str]:
    """Where the folder is served on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(pages)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def axe() -> str:
    """The text of axe-core, or a skip."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-playwright-python")
    (script,) = Path(found.origin).parent.glob("**/axe.min.js")
    return script.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("page", LOOKED_AT)
def test_a_page_fits_and_can_be_read(browser: Any, address: str, page: str, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme_is = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": scheme_is})
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(f"{address}{LOOKED_AT[page]}")
    browser.execute_script("localStorage.clear()")  # where the site keeps the scheme of its first reader
    browser.refresh()
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    shown, inner, wide = browser.execute_script(WIDE)
    assert shown <= inner == width, wide
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome")]
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []
    errors = [entry for entry in browser.get_log("browser") if not entry["message"].startswith(f"{address}/favicon")]
    assert errors == []
    browser.execute_script(axe())
    browser.execute_script(FULL)
    browser.set_script_timeout(120)
    assert browser.execute_async_script(CONTRAST) == []


class _Links(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def broken(site: Path) -> list[str]:
    """Links within a site that lead to no file, or to no place in it."""
    found = {path: _Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    problems = []
    for path, page in found.items():
        for link in page.links:
            address, anchor = urldefrag(urljoin(f"http://site/{path.relative_to(site).as_posix()}", link))
            if not address.startswith("http://site/"):
                continue
            target = site / unquote(address.removeprefix("http://site/"))
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and (not anchor or target not in found or unquote(anchor) in found[target].anchors)
            if not there and path.name != "404.html":  # whose links begin at the root of the host
                problems.append(f"{path.relative_to(site)}: {link}")
    return sorted(problems)


def test_every_link_of_the_site_leads_somewhere(pages: Path, tmp_path: Path) -> None:
    assert broken(pages / "site") == []
    (tmp_path / "index.html").write_text('<a href="a.html">x</a><a href="#b">x</a><a href="#c">x</a><p id="b">')
    assert broken(tmp_path) == ["index.html: #c", "index.html: a.html"]
