"""Pictures of MLflow's pages for docs/tracking.md: a real `mlflow server`, seen by headless Chromium.

    semisup run digits/quickstart
    python benchmarks/mlflow_pictures.py         # writes docs/pictures/mlflow-runs.png, -stage.png and -model.png

Needs Chromium, ChromeDriver and selenium. The server is the run's own database; it is ended afterwards.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from semisup.settings import TrackingConfig

OUT = Path(__file__).parent.parent / "docs" / "pictures"
WIDTH = 1180
COLORS = 24
COLUMNS = ["metrics.`test/accuracy`", "metrics.`test/ece`", "params.`method.name`", "attributes.`Models`"]


def chosen(experiment: str, run: str) -> str:
    """Return what a browser keeps of earlier clicks: model training, no assistant, a run's stages and columns shown."""
    state = {"runsExpanded": {run: True}, "selectedColumns": COLUMNS}
    kept = {
        "mlflow.workflowType_v1": json.dumps("machine_learning"),
        "mlflow.assistant.panelOpen_v1": "false",
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
        f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState': json.dumps(state),
    }
    return "".join(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)});" for key, value in kept.items())


@contextmanager
def served(database: Path) -> Iterator[str]:
    """Serve a run's database, and give the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["server", "--backend-store-uri", f"sqlite:///{database.name}", "--port", port, "--workers", "1"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], cwd=database.parent, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            while not answers(address):
                if server.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode(errors="replace"))
                time.sleep(1)
            yield address
        finally:
            server.terminate()
            server.wait()


def answers(address: str) -> bool:
    """Return whether a server is up."""
    try:
        urllib.request.urlopen(f"{address}/health", timeout=5).close()
    except OSError:
        return False
    return True


def look(pages: dict[str, tuple[str, int]], script: str, out: Path) -> None:
    """Write each page, an address and its height, as a PNG of few colors; the script is run before a page's own."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory() as folder:
        for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={folder}"):
            options.add_argument(f"--{flag}")
        chrome: Any = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
            for name, (address, height) in pages.items():
                chrome.get("about:blank")
                chrome.set_window_size(WIDTH, height)
                chrome.get(address)
                time.sleep(12)  # the page asks its server for what it shows, bit by bit
                image = Image.open(io.BytesIO(chrome.get_screenshot_as_png())).convert("RGB")
                image.quantize(COLORS, dither=Image.Dither.NONE).save(out / f"mlflow-{name}.png", optimize=True)
        finally:
            chrome.quit()


def main() -> None:
    """Serve the newest run of a database and take three pictures of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, default=Path("runs/mlflow.db"))
    parser.add_argument("--stage", default="selftrain")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with served(given.database.absolute()) as address:
        client = MlflowClient(address)
        experiment = client.get_experiment_by_name(TrackingConfig().experiment)
        if experiment is None:
            raise SystemExit(f"{given.database} has no run")
        number = experiment.experiment_id
        runs = client.search_runs([number])  # the newest first
        (parent, *_) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        (stage, *_) = [run for run in runs if run.info.run_name == given.stage]
        begun = f"{address}/#/experiments/{number}/runs"
        pages = {
            "runs": (begun, 640),
            "run": (f"{begun}/{parent.info.run_id}", 1250),
            "stage": (f"{begun}/{stage.info.run_id}/model-metrics", 1050),
        }
        look(pages, chosen(number, parent.info.run_id), given.out)


if __name__ == "__main__":
    main()
