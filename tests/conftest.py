"""One thread per process, figures that nobody looks at undrawn, and what several rooms share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.nursery import Nursery

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    # Tiny networks gain nothing from more threads, and on a busy machine lose most of their time to them.
    os.environ.setdefault(name, "1")  # read by torch when it is imported, which no test module has done yet


@pytest.fixture(scope="session", autouse=True)
def drawing() -> Iterator[dict[Any, Any]]:
    """What draws, which is at work only where a test asks for `with_figures`."""
    from tests import undrawn

    originals = undrawn.replace(undrawn.BLANK)
    yield originals
    undrawn.replace(originals)


@pytest.fixture
def with_figures(drawing: dict[Any, Any]) -> Iterator[None]:
    """Figures are drawn in this test."""
    from tests import undrawn

    blank = undrawn.replace(drawing)
    yield
    undrawn.replace(blank)


@pytest.fixture(scope="session")
def forks() -> Iterator[Nursery]:
    """A nursery for as long as this process of pytest lives; a test takes `nursery`."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def nursery(forks: Nursery) -> Iterator[Nursery]:
    """Processes of `semisup` that need not import torch; none of them outlives its test."""
    yield forks
    forks.clear()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with a log of its console and of its requests."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and ChromeDriver (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "window-size=1280,900",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.get("about:blank")  # away from Chromium's own first page, whose requests may come after a test has begun
    yield chrome
    chrome.quit()
